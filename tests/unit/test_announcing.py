"""`invalidate_on_commit` and `commit_message` of every kind of cached function, and who is to listen."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from leasecache import AsyncCache, Cache, ConfigError
from leasecache.messages import CommitMessage, read_payload

cache = Cache()
acache = AsyncCache()


@cache.cached("media:{media_id}:{size}", ttl=60, stale_for=5)
def get_media(media_id: int, size: str = "s") -> str:
    return ""


@cache.cached_many("user:{user_id}", ttl=60)
def get_users(user_ids: Sequence[int]) -> Mapping[int, str]:
    return {}


class Shop:
    """Has a cached method."""

    @cache.cached("price:{item}", ttl=60, ignore=("session",))
    def price(self, item: int, session: object = None) -> int:
        return 1


@acache.cached("amedia:{media_id}", ttl=60)
async def aget_media(media_id: int) -> str:
    return ""


@acache.cached_many("auser:{user_id}", ttl=60)
async def aget_users(user_ids: Sequence[int]) -> Mapping[int, str]:
    return {}


SHOP = Shop()
URL = "memory://?namespace=shop"
CALLS: list[tuple[Any, tuple[Any, ...], dict[bytes, float]]] = [
    (get_media, (7,), {b"shop:media:7:s": 5}),
    (get_media, (7, "x l"), {b"shop:media:7:x%20l": 5}),
    (get_users, (1, 2, 1), {b"shop:user:1": 0, b"shop:user:2": 0}),
    (SHOP.price, (3,), {b"shop:price:3": 0}),
    (Shop.price, (SHOP, 3), {b"shop:price:3": 0}),
]


def announced(message: CommitMessage) -> dict[bytes, float]:
    """Return the keys that a message names."""
    payload = read_payload(message.parameters[0].encode())
    assert payload.fault is None
    return payload.keys


@pytest.mark.parametrize(("fn", "args", "keys"), CALLS)
def test_the_message_names_the_keys(fn: Any, args: tuple[Any, ...], keys: dict[bytes, float]) -> None:
    """The message has the logical keys, with their namespace and the stale_for of their policy."""
    with cache.override(URL):
        assert announced(fn.commit_message(*args)) == announced(cache.commit_message(fn, *args)) == keys


class Connection:
    """What psycopg 3 offers, and a record of what it was asked."""

    pgconn = None

    def __init__(self) -> None:
        self.ran: list[CommitMessage] = []

    def execute(self, sql: str, parameters: tuple[str]) -> None:
        """Remember a statement."""
        self.ran.append(CommitMessage(sql, parameters))


class AsyncConnection(Connection):
    """The same, awaited."""

    async def execute(self, sql: str, parameters: tuple[str]) -> None:  # type: ignore[override]
        """Remember a statement once it is awaited."""
        super().execute(sql, parameters)


@pytest.mark.parametrize(("fn", "args", "keys"), CALLS)
def test_sent_by_the_function(fn: Any, args: tuple[Any, ...], keys: dict[bytes, float]) -> None:
    """`invalidate_on_commit` runs that message, once, on the connection that it is given."""
    conn = Connection()
    with cache.override(URL):
        assert fn.invalidate_on_commit(conn, *args) is None
        assert conn.ran == [fn.commit_message(*args)]


def test_sent_from_asyncio() -> None:
    """Of an AsyncCache it is awaited; the message itself is not."""

    async def main() -> None:
        conn = AsyncConnection()
        with acache.override(URL):
            await aget_media.invalidate_on_commit(conn, 7)
            await aget_users.invalidate_on_commit(conn, 1, 2)
            assert conn.ran == [aget_media.commit_message(7), acache.commit_message(aget_users, 1, 2)]
        assert announced(conn.ran[0]) == {b"shop:amedia:7": 0}

    asyncio.run(main())


@pytest.mark.parametrize("url", ["memory://", "memcached://127.0.0.1:1", "memcached://127.0.0.1:1?guard=none"])
def test_nobody_listens(url: str) -> None:
    """Without a daemon a message would be lost without a word: it is refused, and what to do instead is named."""
    deaf = Cache.from_url(url)

    @deaf.cached("f:{a}", ttl=60)
    def f(a: int) -> int:
        return a

    for call in (lambda: f.invalidate_on_commit(None, 1), lambda: f.commit_message(1)):
        with pytest.raises(
            ConfigError,
            match=r"\.f: with guard='none' no daemon hears commit messages, nobody listens; call invalidate",
        ):
            call()


def test_not_configured() -> None:
    """Before configure the error is that of every other use."""
    with pytest.raises(ConfigError, match="this cache has no URL yet"):
        get_media.commit_message(1)


def test_caching_is_off() -> None:
    """With null:// there is nothing to invalidate, so nobody needs to listen; the application runs unchanged."""
    off = Cache.from_url("null://")

    @off.cached("f:{a}", ttl=60)
    def f(a: int) -> int:
        return a

    assert announced(f.commit_message(1)) == {b"f:1": 0}


@pytest.mark.parametrize("args", [("7",), (), (7, "s", 1), (True,)])
def test_arguments_are_checked(args: tuple[Any, ...]) -> None:
    """What is no argument of the key is refused before anything is sent."""
    with cache.override(URL), pytest.raises(TypeError):
        get_media.invalidate_on_commit(None, *args)
