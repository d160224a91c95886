"""A cached count reads the counter row once, and is declared to depend on it."""

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest

from leasecache.cache import Cache
from leasecache.counters import Counter, counter
from leasecache.rules import Rule
from tests.fix_servers import PostgresPair

SOURCE = """
create table user_likes_media (user_id int, media_id bigint);
insert into user_likes_media values (1, 12345), (2, 12345), (1, 7);
create table votes (poll uuid);
insert into votes values ('0000000a-0000-0000-0000-000000000000'), (null);
"""


class Connections:
    """A `connect` that says how often it was asked."""

    def __init__(self, server: PostgresPair, database: str) -> None:
        self.opened = 0
        self._open = lambda: server.primary.connect(database)

    def __call__(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        self.opened += 1
        return self._open()


@pytest.fixture
def connections(postgres_pair: PostgresPair, database: str) -> Connections:
    """Connections to a new database with likes and votes."""
    postgres_pair.primary.query(SOURCE, dbname=database)
    return Connections(postgres_pair, database)


@pytest.fixture
def likes(connections: Connections) -> Counter:
    """A counter of likes, applied, that opens its own connections."""
    return created(connections, counter("media_likes", of="user_likes_media", by="media_id", connect=connections))


@pytest.fixture
def cache() -> Iterator[Cache]:
    """A cache in memory."""
    with Cache.from_url("memory://") as cache:
        yield cache


def created(connections: Connections, declared: Counter) -> Counter:
    """Apply a counter."""
    with connections() as conn:
        declared.create(conn)
    connections.opened = 0
    return declared


def test_a_cached_count_is_read_once(cache: Cache, connections: Connections, likes: Counter) -> None:
    """A count is loaded once, is served as it was, and is read again after its invalidation."""
    like_count = cache.counter(likes, ttl=3600)
    assert [like_count(12345), like_count(12345), connections.opened] == [2, 2, 1]
    with connections() as conn:
        conn.execute("insert into user_likes_media values (3, 12345)")
    assert like_count(12345) == 2
    like_count.invalidate(12345)
    assert like_count(12345) == 3


def test_many_counts_are_read_at_a_time(cache: Cache, likes: Counter) -> None:
    """get_many answers for each key, 0 for one that was never counted."""
    assert cache.counter(likes, ttl=3600).get_many([12345, 7, 99]) == {12345: 2, 7: 1, 99: 0}


def test_a_cached_count_depends_on_its_row(cache: Cache, likes: Counter) -> None:
    """The daemon learns which key a changed row of the counter touches."""
    like_count = cache.counter(likes, ttl=3600, stale_for=5)
    assert like_count.key(12345) == b"media_likes:12345"
    assert cache.rules.rules == (
        Rule(
            function="leasecache.counters.media_likes",
            template="media_likes:{key}",
            kinds={"key": "int"},
            schema="public",
            table="media_likes",
            fields={"key": "media_id"},
            stale_for=5,
        ),
    )


def test_a_key_may_be_of_another_type(cache: Cache, connections: Connections) -> None:
    """`key_type` is the type of the argument, and `connect` may come with the binding."""
    votes = created(connections, counter("tally", of="votes", by="poll"))
    vote_count = cache.counter(votes, connect=connections, key_type=uuid.UUID, ttl=60)
    assert vote_count(uuid.UUID(int=10 << 96)) == 1
    with pytest.raises(TypeError, match="key"):
        vote_count("0000000a-0000-0000-0000-000000000000")
