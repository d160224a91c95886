"""Commit messages on real servers: sent over whatever connection the application has, heard when it commits."""

import asyncio
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

from leasecache import Cache
from leasecache.errors import ConfigError
from leasecache.invalidation.pgoutput import Message, decode
from leasecache.lab import wait_until
from leasecache.messages import PREFIX, build_message, read_payload
from leasecache.transaction import asend, send
from tests.fix_daemon import WITHIN, World
from tests.fix_servers import PostgresPair

KEYS = {b"shop:page:3": 0.0, b"shop:it's:100%25:\\x": 60.0}
MESSAGE = build_message(KEYS)
Sync = Callable[[str], AbstractContextManager[Any]]
Async = Callable[[str], AbstractAsyncContextManager[Any]]


@contextmanager
def psycopg_3(dsn: str) -> Iterator[Any]:
    with psycopg.connect(dsn) as conn:
        yield conn


@contextmanager
def psycopg_3_cursor(dsn: str) -> Iterator[Any]:
    """A cursor of the server that has been read in part."""
    with psycopg.connect(dsn) as conn, conn.cursor("c") as cursor:
        assert cursor.execute("select generate_series(1, 3)").fetchone() == (1,)
        yield cursor
        assert cursor.fetchall() == [(2,), (3,)]


@contextmanager
def psycopg_2(dsn: str) -> Iterator[Any]:
    conn = psycopg2.connect(dsn)
    try:
        with conn:
            yield conn
    finally:
        conn.close()


@contextmanager
def psycopg_2_cursor(dsn: str) -> Iterator[Any]:
    with psycopg_2(dsn) as conn, conn.cursor() as cursor:
        cursor.execute("select generate_series(1, 2)")
        yield cursor
        assert cursor.fetchall() == [(1,), (2,)]


def _engine_url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@contextmanager
def sqlalchemy_connection(dsn: str, driver: str = "psycopg") -> Iterator[Any]:
    engine = sqlalchemy.create_engine(_engine_url(dsn, driver), poolclass=sqlalchemy.NullPool)
    with engine.begin() as conn:
        yield conn


@contextmanager
def sqlalchemy_psycopg_2(dsn: str) -> Iterator[Any]:
    with sqlalchemy_connection(dsn, "psycopg2") as conn:
        yield conn


@contextmanager
def sqlalchemy_session(dsn: str) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(_engine_url(dsn, "psycopg"), poolclass=sqlalchemy.NullPool)
    with orm.Session(engine) as session, session.begin():
        yield session


@asynccontextmanager
async def psycopg_3_async(dsn: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        yield conn


@asynccontextmanager
async def sqlalchemy_async(dsn: str) -> AsyncIterator[Any]:
    engine = sqlalchemy_asyncio.create_async_engine(_engine_url(dsn, "psycopg"), poolclass=sqlalchemy.NullPool)
    async with engine.begin() as conn:
        yield conn


@asynccontextmanager
async def sqlalchemy_async_session(dsn: str) -> AsyncIterator[Any]:
    engine = sqlalchemy_asyncio.create_async_engine(_engine_url(dsn, "psycopg"), poolclass=sqlalchemy.NullPool)
    async with sqlalchemy_asyncio.AsyncSession(engine) as session, session.begin():
        yield session


SYNC: list[Sync] = [
    *(psycopg_3, psycopg_3_cursor, psycopg_2, psycopg_2_cursor),
    *(sqlalchemy_connection, sqlalchemy_psycopg_2, sqlalchemy_session),
]
ASYNC: list[Async] = [psycopg_3_async, sqlalchemy_async, sqlalchemy_async_session]


class Undone(Exception):
    """Makes a transaction roll back."""


def send_and_fail(conn: Any) -> None:
    """Send in a transaction that rolls back."""
    send(conn, MESSAGE)
    raise Undone


class Log:
    """A slot that a test reads."""

    def __init__(self, pair: PostgresPair, database: str) -> None:
        self.server, self.database, self.dsn = pair.primary, database, pair.primary.dsn(database)
        self.server.query("create publication leasecache for all tables", dbname=database)
        self.server.create_logical_slot(f"log_{database}", dbname=database)

    def messages(self) -> list[Message]:
        """Return the messages that were committed since the last call."""
        options = "'proto_version', '1', 'publication_names', 'leasecache', 'messages', 'true'"
        changes = f"select data from pg_logical_slot_get_binary_changes('log_{self.database}', null, null, {options})"
        decoded = [decode(bytes(data)) for (data,) in self.server.query(changes, dbname=self.database)]
        return [message for message in decoded if isinstance(message, Message)]

    def heard(self) -> dict[bytes, float]:
        """Return the keys of the one message that was committed, if any."""
        found = self.messages()
        assert [(message.prefix, message.transactional) for message in found] == [(PREFIX, True)] * len(found)
        payloads = [read_payload(message.content) for message in found]
        assert all(payload.fault is None for payload in payloads)
        assert len(payloads) < 2
        return payloads[0].keys if payloads else {}


@pytest.fixture
def log(postgres_pair: PostgresPair, database: str) -> Log:
    """A slot of the test's own."""
    return Log(postgres_pair, database)


@pytest.mark.parametrize("connected", SYNC)
def test_sent_at_commit_or_never(log: Log, connected: Sync) -> None:
    """Over every kind of connection, the message is in the stream once its transaction commits, and not before."""
    with connected(log.dsn) as conn:
        send(conn, MESSAGE)
        assert log.heard() == {}
    assert log.heard() == KEYS
    with pytest.raises(Undone), connected(log.dsn) as conn:
        send_and_fail(conn)
    assert log.heard() == {}


@pytest.mark.parametrize("connected", ASYNC)
def test_sent_from_asyncio(log: Log, connected: Async) -> None:
    """The same over async connections; and over a sync one that an async application has."""

    async def main(fault: Exception | None) -> None:
        async with connected(log.dsn) as conn:
            await asend(conn, MESSAGE)
            if fault:
                raise fault

    asyncio.run(main(None))
    assert log.heard() == KEYS
    with pytest.raises(Undone):
        asyncio.run(main(Undone()))
    assert log.heard() == {}
    with psycopg.connect(log.dsn) as conn:
        asyncio.run(asend(conn, MESSAGE))
    assert log.heard() == KEYS


@pytest.mark.parametrize("connected", ASYNC)
def test_an_async_connection_is_not_sent_over_by_a_sync_call(log: Log, connected: Async) -> None:
    """A message that nobody awaits would never be sent: it is refused, and nothing is left unawaited."""

    async def main() -> None:
        async with connected(log.dsn) as conn:
            with pytest.raises(ConfigError, match="is asynchronous; await invalidate_on_commit of an AsyncCache"):
                send(conn, MESSAGE)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
    assert log.heard() == {}


DJANGO = """
import sys
from django.conf import settings
name, host, port = sys.argv[1:]
database = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "HOST": host, "PORT": port, "USER": "postgres"}
settings.configure(DATABASES={"default": database})
from django.db import connection, transaction
from leasecache.messages import build_message
from leasecache.transaction import send
with transaction.atomic():
    send(connection, build_message({b"committed": 0}))
with transaction.atomic(), connection.cursor() as cursor:
    cursor.execute("select 1")
    send(cursor, build_message({b"by-cursor": 0}))
    assert cursor.fetchall() == [(1,)]
with transaction.atomic():
    send(connection, build_message({b"rolled-back": 0}))
    transaction.set_rollback(True)
"""


def test_sent_from_django(log: Log) -> None:
    """Django's connection and its cursors send within `atomic`, as its own statements do."""
    host, port = log.server.address.split(":")
    subprocess.run([sys.executable, "-c", DJANGO, log.database, host, port], check=True, timeout=WITHIN * 2)
    assert [message.content for message in log.messages()] == [b"1\n0 committed", b"1\n0 by-cursor"]


def test_what_the_database_refuses_is_raised(log: Log) -> None:
    """In a transaction that has failed, the driver's own error reaches the caller."""
    with psycopg.connect(log.dsn) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1 / 0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            send(conn, MESSAGE)


def announce(world: World, *keys: str, stale_for: float = 0, statement: str = "select 1") -> None:
    """Commit a transaction of the primary that names keys."""
    with psycopg.connect(world.primary.dsn(world.database)) as conn:
        conn.execute(statement)
        send(conn, build_message({key.encode(): stale_for for key in keys}))


def test_the_daemon_hears_what_is_committed(world: World) -> None:
    """Keys of a committed message go, those of a rolled back one and of another namespace stay."""
    world.daemon.start().streaming()
    world.fill("page:1", "page:2", "page:3", "page:4")
    with pytest.raises(Undone), psycopg.connect(world.primary.dsn(world.database)) as conn:
        send_and_fail(conn)
    announce(world, "blog:page:4", "page:4")
    announce(world, "shop:page:1", "shop:page:2")
    world.await_gone("page:1", "page:2")
    assert all(map(world.cached, ("page:3", "page:4")))
    world.await_confirmed(world.written())
    assert world.daemon.metric("messages_total") == 2
    assert world.daemon.metric("garbled_messages_total") == 0


def test_from_a_cached_function_to_its_next_caller(primary_world: World) -> None:
    """A function's `invalidate_on_commit` in the writer's transaction makes the next reader load what was written."""
    world = primary_world
    world.write("insert into media values (1, 'old')")
    world.daemon.start().streaming()
    world.await_confirmed(world.written())
    cache = Cache()

    @cache.cached("titles:{first}", ttl=600)
    def get_titles(first: int) -> list[str]:
        rows = world.primary.query("select title from media where id >= %s order by id", first, dbname=world.database)
        return [title for (title,) in rows]

    with cache.override(world.url):
        assert get_titles(1) == get_titles(1) == ["old"]
        with psycopg.connect(world.primary.dsn(world.database)) as conn:
            conn.execute("update media set title = 'new'")
            get_titles.invalidate_on_commit(conn, 1)
            assert get_titles(1) == ["old"]
        wait_until(lambda: get_titles(1) == ["new"], WITHIN, f"the new title; {world.daemon.log()}")


def test_rows_and_messages_of_one_transaction_go_together(primary_world: World) -> None:
    """A transaction's rows and messages are one set of keys, for each of which the strictest wish holds."""
    world = primary_world
    world.daemon.start().streaming()
    world.fill("media:1", "page:1")
    announce(world, "shop:media:1", "shop:page:1", stale_for=600, statement="insert into media values (1, 'a')")
    world.await_gone("media:1")  # by its row's rule, which allows nothing stale
    world.await_confirmed(world.written())
    assert world.cached("page:1")
    assert world.daemon.metric("keys_total") == 2
    announce(world, "shop:page:1")
    world.await_gone("page:1")


def test_many_keys_in_one_message(primary_world: World) -> None:
    """A message of thousands of keys is heard whole."""
    world = primary_world
    keys = [f"page:{i}" for i in range(5000)]
    world.daemon.start().streaming()
    world.fill(keys[0], keys[2500], keys[-1])
    announce(world, *(f"shop:{key}" for key in keys))
    world.await_gone(keys[0], keys[2500], keys[-1])
    assert world.daemon.metric("keys_total") == 5000


def test_garbled_messages_are_counted_and_end_nothing(primary_world: World) -> None:
    """Garbage under our prefix is counted, logged once and acknowledged; what can be read of it is heeded."""
    world = primary_world
    world.daemon.start().streaming()
    world.fill("page:1", "page:2")
    emit = "select pg_logical_emit_message"
    world.write(f"{emit}(true, 'leasecache', decode('00ff', 'hex')::bytea)")
    world.write(f"{emit}(true, 'leasecache', '7\n0 shop:page:2')")
    world.write(f"{emit}(true, 'leasecache', repeat('x', 3000000))")
    world.write(f"{emit}(false, 'leasecache', '1\n0 shop:page:2')")
    world.write(f"{emit}(true, 'leasecache.other', '1\n0 shop:page:2')")
    world.write(f"{emit}(true, 'leasecache', '1\nwhat\n0 shop:page:1')")
    world.await_gone("page:1")
    world.await_confirmed(world.written())
    assert world.cached("page:2")
    assert world.daemon.metric("garbled_messages_total") == 5
    assert world.daemon.log().count("event=garbled-message") == 1
    assert world.daemon.metric("reconnects_total") == 0
    assert world.daemon.get("/readyz")[0] == 200


def test_a_message_waits_at_the_gate(fragile_world: Callable[[str], World]) -> None:
    """Guard: the gate. A message's keys go when its transaction is visible, as those of rows do, and not before."""
    world = fragile_world("primary")
    world.daemon.start().streaming()
    world.fill("page:1")
    world.primary.synchronise(world.standby.name)
    world.standby.pause()
    with ThreadPoolExecutor(1) as pool, ExitStack() as resumed:
        resumed.callback(world.standby.resume)
        waiting = pool.submit(announce, world, "shop:page:1")
        wait_until(lambda: world.daemon.metric("held_transactions") == 1, WITHIN, "a held transaction")
        assert world.cached("page:1"), "invalidated before it was visible"
        resumed.close()
        waiting.result(WITHIN)
    world.await_gone("page:1")
