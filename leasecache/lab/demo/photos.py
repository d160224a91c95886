"""A photo-sharing application: its schema, its data, and the functions that it caches."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from leasecache.cache import Cache
from leasecache.counters import Counter, counter
from leasecache.rules import row

POPULAR = 12345  # the media that everybody likes
POPULAR_LIKES = 300_000
LIKES = 1_000_000
MEDIA = 20_000
USERS = 400_000
COMMENTS = 20_000
CHUNK = 50_000  # rows of one insert while seeding

SCHEMA = """
create table users (id int primary key, name text not null);
create table media (id int primary key, owner_id int not null, title text not null);
create table comments (id bigserial primary key, media_id int not null, author_id int not null, body text not null);
create unique index comments_of_media on comments (media_id, id);
create table user_likes_media (user_id int not null, media_id int not null, primary key (user_id, media_id));
create index likes_of_media on user_likes_media (media_id);
"""

# table, rows, and the select that makes the rows first..last
SEED: tuple[tuple[str, int, str], ...] = (
    ("users", USERS, "select i, 'user ' || i from generate_series(%(first)s::int, %(last)s::int) i"),
    ("media", MEDIA, "select i, 1 + i %% 1000, 'photo ' || i from generate_series(%(first)s::int, %(last)s::int) i"),
    (
        "comments (media_id, author_id, body)",
        COMMENTS,
        f"select 1 + i %% {MEDIA}, i, 'nice' from generate_series(%(first)s::int, %(last)s::int) i",
    ),
    (
        "user_likes_media",
        LIKES,
        f"select case when i <= {POPULAR_LIKES} then i else 1 + i %% {USERS} end, "
        f"case when i <= {POPULAR_LIKES} then {POPULAR} else 1 + (i / {USERS} * 5003 + i) %% {POPULAR - 1} end "
        "from generate_series(%(first)s::int, %(last)s::int) i on conflict do nothing",
    ),
)


@dataclass(frozen=True)
class Media:
    """A photo."""

    id: int
    title: str


@dataclass(frozen=True)
class Feed:
    """The newest comments of a photo."""

    newest: int  # id of the newest comment, 0 = none
    bodies: list[str]


class Database:
    """A connection per thread to one node."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._local = threading.local()
        self._opened: list[psycopg.Connection[Any]] = []

    @contextlib.contextmanager
    def connection(self) -> Iterator["psycopg.Connection[Any]"]:
        """Lend this thread's connection, in autocommit mode."""
        if not hasattr(self._local, "connection"):
            self._local.connection = psycopg.connect(self._dsn, autocommit=True)
            self._opened.append(self._local.connection)
        yield self._local.connection

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one query and return its rows."""
        with self.connection() as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._opened:
            connection.close()


@dataclass(frozen=True, kw_only=True)
class Photos:
    """The cached functions, as the web servers of one data centre run them."""

    cache: Cache
    database: Database
    get_media: Any
    get_feed: Any
    like_count: Any


def declare_likes() -> Counter:
    """Return the counter of the likes of each media."""
    return counter("media_likes", of="user_likes_media", by="media_id")


def declare(cache: Cache, database: Database) -> Photos:
    """Declare the cached functions on `cache`, with loaders that read `database`."""

    @cache.cached("media:{media_id}", ttl=3600, depends_on=row("media", media_id="id"))
    def get_media(media_id: int) -> Media | None:
        found = database.rows("select id, title from media where id = %s", media_id)
        return Media(*found[0]) if found else None

    @cache.cached("feed:{media_id}", ttl=3600, depends_on=row("comments", media_id="media_id"))
    def get_feed(media_id: int) -> Feed:
        query = "select id, body from comments where media_id = %s order by id desc limit 20"
        found = database.rows(query, media_id)
        return Feed(found[0][0] if found else 0, [body for _, body in found])

    like_count = cache.counter(declare_likes(), connect=database.connection, ttl=3600)
    return Photos(cache=cache, database=database, get_media=get_media, get_feed=get_feed, like_count=like_count)


def seed(connection: "psycopg.Connection[Any]", progress: Callable[[str, int, int], object]) -> None:
    """Create the schema and its rows; `progress` is told table, rows done and rows in all."""
    connection.execute(SCHEMA.encode())
    for table, total, select in SEED:
        for first in range(1, total + 1, CHUNK):
            last = min(first + CHUNK - 1, total)
            connection.execute(f"insert into {table} {select}".encode(), {"first": first, "last": last})
            progress(table.split(" ")[0], last, total)
    connection.execute(b"vacuum analyze")  # else autovacuum does it while the first steps measure


rules_cache = Cache()  # what the daemons import: never configured, it only knows the rules
declare(rules_cache, Database(""))
