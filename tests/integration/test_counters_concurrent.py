"""A counter equals count(*) in every snapshot, whoever writes, backfills or repairs at the same time."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from leasecache.counters import Counter, counter
from tests.fix_servers import PostgresPair

Connection = psycopg.Connection[Any]
Connect = Callable[[], Connection]
Write = Callable[[Connection, random.Random], object]

SOURCE = """
create table media (id int primary key);
create table likes (
    user_id int, media_id int references media on delete cascade, deleted boolean not null default false,
    primary key (user_id, media_id)
);
create index on likes (media_id);
insert into media select generate_series(1, 20);
"""
LIKES = counter("media_likes", of="likes", by="media_id", where="not deleted")
# Keys whose count differs from count(*), in the snapshot of this one statement.
WRONG = """
with actual as (select media_id, count(*) as n from likes where not deleted group by media_id)
select media_id, count, n from media_likes full join actual using (media_id)
where coalesce(count, 0) <> coalesce(n, 0)
"""


@pytest.fixture
def connect(postgres_pair: PostgresPair, database: str) -> Iterator[Connect]:
    """Open a connection in autocommit mode to a new database with media and no likes; it closes with the test."""
    with ExitStack() as stack:
        postgres_pair.primary.query(SOURCE, dbname=database)
        yield lambda: stack.enter_context(closing(postgres_pair.primary.connect(database)))


def wrong(conn: Connection) -> list[tuple[Any, ...]]:
    """Return the keys whose count is not count(*), in one snapshot."""
    return conn.execute(WRONG).fetchall()


@contextmanager
def writers(connect: Connect, number: int, write: Write) -> Iterator["list[Future[None]]"]:
    """Write from so many connections until the block ends, once at least; each future has the first error."""
    stop = threading.Event()

    def run(seed: int, conn: Connection) -> None:
        rng = random.Random(seed)
        write(conn, rng)
        while not stop.is_set():
            write(conn, rng)

    connections = [connect() for _ in range(number)]
    with ThreadPoolExecutor(number) as pool:
        futures = [pool.submit(run, seed, conn) for seed, conn in enumerate(connections)]
        try:
            yield futures
        finally:
            stop.set()


def for_seconds(seconds: float) -> Iterator[None]:
    """Loop for so many seconds, once at least."""
    end = time.monotonic() + seconds
    yield
    while time.monotonic() < end:
        yield


def random_statement(conn: Connection, rng: random.Random) -> None:
    """Write to one row or to several, in any of the ways that change counts."""
    user, other = rng.randrange(30), rng.randrange(30)
    media = sorted(rng.sample(range(1, 9), rng.randint(1, 4)))
    statement = rng.choice(
        [
            "insert into likes select %(user)s, unnest(%(media)s::int[]) on conflict do nothing",
            "insert into likes select %(user)s, %(one)s"
            " on conflict (user_id, media_id) do update set deleted = not likes.deleted",
            "delete from likes where user_id = %(user)s and media_id = any(%(media)s)",
            "update likes set deleted = not deleted where user_id = %(user)s and media_id = any(%(media)s)",
            "update likes l set media_id = %(one)s where user_id = %(user)s and media_id = %(last)s"
            " and not exists (select from likes where user_id = %(user)s and media_id = %(one)s)",
            "update likes set user_id = %(user)s + 1000 where user_id = %(other)s and media_id = %(one)s"
            " and not exists (select from likes where user_id = %(user)s + 1000 and media_id = %(one)s)",
        ]
    )
    conn.execute(statement.encode(), {"user": user, "other": other, "media": media, "one": media[0], "last": media[-1]})


# What a transaction may be told because of others; the machine has one thread, so waiting ends at once.
OTHERS_FIRST = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
)


class Machine:
    """Some connections that write, roll back, truncate and look, in an order drawn from a seed, with an oracle."""

    def __init__(self, connect: Connect, seed: int) -> None:
        self.rng = random.Random(seed)
        self.writers = [connect() for _ in range(4)]
        self.watcher, self.old = connect(), connect()
        self.old.isolation_level = IsolationLevel.REPEATABLE_READ
        for conn in self.writers:
            conn.execute("set lock_timeout = '5ms'")

    def step(self) -> None:
        """Do one thing on one connection, then compare counts in a new, in an old and in that connection's snapshot."""
        conn = self.rng.choice(self.writers)
        act = self.rng.choices(
            [self.begin, self.write, self.savepoint, self.commit, self.roll_back, self.truncate, self.look_back],
            [4, 12, 3, 4, 2, 1, 2],
        )[0]
        try:
            act(conn)
            assert wrong(conn) == []
        except psycopg.errors.SerializationFailure:
            conn.rollback()
        assert wrong(self.watcher) == wrong(self.old) == []

    def begin(self, conn: Connection) -> None:
        """Open a transaction unless there is one."""
        if conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE:
            level = self.rng.choice(["read committed", "read committed", "repeatable read", "serializable"])
            conn.execute(f"begin isolation level {level}".encode())

    def write(self, conn: Connection) -> None:
        """Write, in the transaction if there is one, unless another transaction was first."""
        with suppress(*OTHERS_FIRST), conn.transaction():
            random_statement(conn, self.rng)

    def savepoint(self, conn: Connection) -> None:
        """Write in a savepoint that is rolled back."""
        with conn.transaction(force_rollback=True):
            self.write(conn)

    def commit(self, conn: Connection) -> None:
        """Commit the transaction."""
        conn.commit()

    def roll_back(self, conn: Connection) -> None:
        """Undo the transaction."""
        conn.rollback()

    def truncate(self, conn: Connection) -> None:
        """Empty the source and commit or roll back, unless another transaction reads it.

        A snapshot from before it ends too: TRUNCATE is not MVCC-safe, and its lock lets nobody else look.
        """
        self.look_back(conn)
        with suppress(*OTHERS_FIRST), conn.transaction(force_rollback=self.rng.random() < 0.3):
            conn.execute("truncate likes")
            assert wrong(conn) == []
        conn.commit()

    def look_back(self, conn: Connection) -> None:
        """Let the old snapshot be the next one."""
        self.old.commit()
        self.old.execute("begin")


@pytest.mark.parametrize("seed", range(4))
def test_every_snapshot_agrees_with_the_oracle(connect: Connect, seed: int) -> None:
    """Any interleaving of transactions, savepoints, rollbacks and truncates leaves no snapshot with a wrong count."""
    connect().execute(LIKES.sql().encode())
    machine = Machine(connect, seed)
    for _ in range(400):
        machine.step()


def likes_of_many(conn: Connection, rng: random.Random) -> None:
    """Insert and delete likes of one hot media and of several others, named in a random order."""
    media = [1, *rng.sample(range(2, 21), 5)]
    rng.shuffle(media)
    user = rng.getrandbits(31)
    conn.execute(
        "insert into likes select %s, m from unnest(%s::int[]) with ordinality as t (m, o) order by o", (user, media)
    )
    if rng.random() < 0.5:
        conn.execute("delete from likes where user_id = %s", (user,))


def test_single_statements_on_hot_keys_do_not_deadlock(connect: Connect) -> None:
    """Eight writers of one hot key and of others in any order never wait in a circle, and the counts are exact."""
    watcher = connect()
    watcher.execute(LIKES.sql().encode())
    with writers(connect, 8, likes_of_many) as futures:
        for _ in for_seconds(2):
            assert wrong(watcher) == []
    for future in futures:
        future.result()
    assert wrong(watcher) == []
    assert watcher.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone() == (
        0,
    )


def like_or_unlike(conn: Connection, rng: random.Random) -> None:
    """Change the likes of one media in one statement, so that no two of these wait in a circle."""
    user, media = rng.randrange(50), rng.randrange(1, 21)
    with conn.transaction(force_rollback=rng.random() < 0.1):
        if conn.execute("delete from likes where user_id = %s and media_id = %s", (user, media)).rowcount == 0:
            conn.execute("insert into likes values (%s, %s) on conflict do nothing", (user, media))


def spoil(conn: Connection) -> None:
    """Make every count wrong."""
    conn.execute("update media_likes set count = count + media_id")


def test_repair_under_writers_leaves_no_drift(connect: Connect) -> None:
    """While six connections write, each repair of every key makes all counts exact."""
    mender, watcher = connect(), connect()
    mender.execute(LIKES.sql().encode())
    mender.execute("insert into likes select 1000, id from media")
    with writers(connect, 6, like_or_unlike):
        for _ in for_seconds(2):
            spoil(mender)
            assert len(LIKES.repair(mender)) == 20
            assert wrong(watcher) == []
            assert LIKES.verify(watcher) == {}


def test_repairs_at_the_same_time_do_not_add_up(connect: Connect) -> None:
    """Several repairs of one counter take turns: the difference is added once."""
    menders = [connect() for _ in range(4)]
    menders[0].execute(LIKES.sql().encode())
    menders[0].execute("insert into likes select 1000, id from media")
    with ThreadPoolExecutor(4) as pool, writers(connect, 2, like_or_unlike):
        for _ in for_seconds(2):
            spoil(menders[0])
            found = list(pool.map(LIKES.repair, menders))
            assert sum(len(drift) for drift in found) == 20
            assert wrong(menders[0]) == []


def applied(conn: Connection) -> None:
    """Apply the two statements of sql() one after the other, as psql does."""
    for statement in statements(LIKES):
        conn.execute(statement.encode())


def statements(likes: Counter) -> list[str]:
    """Split what sql() returns."""
    first, separator, second = likes.sql().partition("\n\nDO ")
    return [first, separator + second]


@pytest.mark.parametrize("apply", [LIKES.create, applied, lambda conn: conn.execute(LIKES.sql().encode())])
def test_a_backfill_under_writers_is_exact(connect: Connect, apply: Callable[[Connection], object]) -> None:
    """A counter put under a busy source is exact as soon as it is there."""
    conn = connect()
    conn.execute("insert into likes select u, m from generate_series(100, 2000) u, generate_series(1, 20) m")
    with writers(connect, 6, like_or_unlike) as futures:
        for _ in for_seconds(2):
            apply(conn)
            assert wrong(conn) == []
            conn.execute("drop function media_likes_track cascade; drop table media_likes")
        apply(conn)
    for future in futures:
        future.result()
    assert wrong(conn) == []


def test_writers_pass_while_a_backfill_measures(connect: Connect) -> None:
    """A backfill that has measured, but not committed, lets writers of other keys and new keys go on."""
    conn, writer = connect(), connect()
    conn.execute("insert into likes select 1, generate_series(1, 5)")
    declare, backfill = statements(LIKES)
    conn.execute(declare.encode())
    writer.execute("set lock_timeout = '5s'; insert into likes values (2, 9)")
    with conn.transaction():
        conn.execute(backfill.encode())
        writer.execute("insert into likes values (3, 9), (3, 10)")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            writer.execute("set lock_timeout = '50ms'; insert into likes values (3, 1)")
    assert wrong(writer) == []


def test_a_definition_is_replaced_under_writers(connect: Connect) -> None:
    """Another `where` waits for transactions that counted by the old one, so that none of them is counted by both."""
    conn, writer = connect(), connect()
    conn.execute(LIKES.sql().encode())
    wider = counter("media_likes", of="likes", by="media_id")
    with ThreadPoolExecutor(1) as pool:
        with writer.transaction():
            writer.execute("insert into likes values (1, 1, true), (2, 1, false)")
            replaced = pool.submit(wider.create, conn)
            assert_waiting(writer, conn)
        replaced.result()
    assert wider.verify(conn) == {}
    assert wider.count(conn, 1) == 2


def assert_waiting(observer: Connection, waiting: Connection) -> None:
    """Return when the other connection waits for a lock."""
    end = time.monotonic() + 60
    blocked = "select pg_blocking_pids(%s) <> '{}'"
    while observer.execute(blocked, (waiting.info.backend_pid,)).fetchone() != (True,):
        assert time.monotonic() < end, "it does not wait"
