"""Denormalised counters: `select count(*) … where key = …` kept in one row per key, exact in every snapshot.

    likes = counter("media_likes", of="user_likes_media", by="media_id", where="not deleted")
    likes.create(conn)                                      # or run likes.sql() in a migration
    likes.count(conn, 12345)                                # one indexed read
    like_count = cache.counter(likes, connect=pool.connection, ttl=3600)
    like_count(12345)                                       # the same under a lease

The counter table is yours to read: `select count from media_likes where media_id = 12345`.

What to expect of writers:

- Those of one key take turns: a statement holds the counter rows it changed until its transaction ends.
- Transactions that touch several keys in different orders can deadlock, and Postgres ends one of them with an error.
  Single statements cannot, except those that insert *and* update counted rows of several keys (ON CONFLICT DO UPDATE,
  MERGE): each event has its own trigger, and so its own round of keys.
- At REPEATABLE READ and above, a count that changed since the snapshot is a serialization failure: retry.
- COPY, cascades and TRUNCATE are counted; what runs under `session_replication_role = replica` is not, until a repair.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import quote

import psycopg
from psycopg.rows import tuple_row
from psycopg.sql import Composed

from leasecache.counter_sql import SEARCH_PATH, CounterSQL
from leasecache.errors import ConfigError
from leasecache.rules import row

Connection: TypeAlias = "psycopg.Connection[Any]"
Connect: TypeAlias = Callable[[], AbstractContextManager[Connection]]
Progress: TypeAlias = Callable[[int, int], object]


class Caching(Protocol):
    """What `bind` needs of a cache: its `cached` decorator."""

    @property
    def cached(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Drift:
    """A count that is not what it should be: `stored` in the counter, `actual` in the source, in one snapshot."""

    stored: int
    actual: int

    @property
    def difference(self) -> int:
        """What a repair adds to the stored count."""
        return self.actual - self.stored


Step: TypeAlias = Callable[[Connection, str | None, str | None], dict[Any, Drift]]


def counter(
    table: str,
    *,
    of: str,
    by: str,
    mode: Literal["row"] = "row",
    where: str | None = None,
    connect: Connect | None = None,
) -> "Counter":
    """Declare that `table` holds, for each value of the column `by`, the number of rows of the table `of`.

    `table` and `of` are `name` or `schema.name` as the catalog spells them; no schema means `public`. `where` is an SQL
    predicate over the columns of one row, immutable, and with names outside pg_catalog qualified; rows for which it is
    not true are not counted, nor those whose `by` is null. `connect` returns a context manager that yields a psycopg
    connection (`pool.connection`), for cached reads. Raises ConfigError; nothing is asked of the database yet.
    """
    if mode != "row":
        raise ConfigError(f"counter {table!r}: mode={mode!r} is not available in this version; use mode='row'")
    if by in ("count", "version"):
        raise ConfigError(f"counter {table!r}: by={by!r} is a column the counter has for itself; rename it")
    if where is not None and not where.strip():
        raise ConfigError(f"counter {table!r}: where is empty; leave it out to count every row")
    return Counter(table=table, of=of, by=by, where=where, connect=connect)


class Counter:
    """A counter as declared by `counter()`; every method uses the caller's connection and opens none."""

    def __init__(self, *, table: str, of: str, by: str, where: str | None, connect: Connect | None) -> None:
        self.table = table
        self.of = of
        self.by = by
        self.where = where
        self._connect = connect
        self._sql = CounterSQL(table=table, of=of, by=by, where=where)

    def __repr__(self) -> str:
        return f"<Counter {self.table} of {self.of} by {self.by}>"

    def sql(self) -> str:
        """Return the DDL as two statements, the table with its triggers and the backfill; to run it again is harmless.

        It needs PostgreSQL 14. The first statement locks out writers of the source (SHARE ROW EXCLUSIVE) until it
        commits, which takes milliseconds once the writers before it have ended; set lock_timeout if some are slow. Run
        the statements in transactions of their own (psql does) and the backfill locks nobody out of the source; it
        holds the rows of the counter that it changes until it ends, and `create` holds fewer at a time. In one
        transaction, or sent as one string, both hold what they have to the end.
        A source that cannot be counted is refused by the first statement, which then changes nothing.
        """
        return f"{self._sql.declare()}\n{self._sql.backfill()}"

    def create(self, conn: Connection, *, progress: Progress | None = None) -> None:
        """Do what `sql()` does, with the backfill in batches that are transactions of their own, like `repair`.

        Raises psycopg.Error when Postgres refuses the declaration.
        """
        with conn.transaction():
            conn.execute(self._sql.declare().encode())
        self.repair(conn, progress=progress)

    def count(self, conn: Connection, key: Any) -> int:
        """Return the count of `key` in the connection's snapshot, 0 for a key never seen: one indexed read."""
        found = _fetch(conn, self._sql.read(), (key,))
        return int(found[0][0]) if found else 0

    def verify(self, conn: Connection, *, progress: Progress | None = None) -> dict[Any, Drift]:
        """Return the keys whose count is wrong, and by how much; {} when every count is exact.

        Each key is measured in one snapshot, so that live writes are not mistaken for drift. `progress` is called
        with the batches done and their number.
        """
        return self._sweep(conn, self._measure, progress)

    def repair(self, conn: Connection, *, progress: Progress | None = None) -> dict[Any, Drift]:
        """Add to each wrong count what it lacks, and return what `verify` would have.

        Safe under live writes: a difference is added, a count is never set. Each batch is a transaction of its own,
        unless the connection is in one already. At REPEATABLE READ a concurrent change of the same count raises
        psycopg.errors.SerializationFailure instead of waiting. `progress` is called as by `verify`.
        """
        return self._sweep(conn, self._mend, progress)

    def bind(self, cache: Caching, *, connect: Connect | None = None, key_type: Any = int, **policy: Any) -> Any:
        """Return a function cached by `cache` that reads one count; `cache.counter(likes, …)` calls this.

        `key_type` is the Python type of the column `by`, as in a key template. `connect` replaces the counter's own.
        `policy` goes to `cache.cached`. Raises ConfigError when there is no `connect`.
        """
        opening = connect or self._connect
        if opening is None:
            raise ConfigError(f"counter {self.table!r}: a cached count needs connections; pass connect=pool.connection")

        def load(key: Any) -> int:
            with opening() as conn:
                return self.count(conn, key)

        load.__name__ = load.__qualname__ = self.table
        load.__annotations__ = {"key": key_type, "return": int}
        template = f"{quote(self.table)}:{{key}}"
        return cache.cached(template, depends_on=row(self.table, key=self.by), **policy)(load)

    def _sweep(self, conn: Connection, step: Step, progress: Progress | None) -> dict[Any, Drift]:
        """Take a step for each batch of keys (above, up to), in a transaction on the path that the triggers have."""
        with _trigger_path(conn):
            bounds = [bound for (bound,) in _fetch(conn, self._sql.bounds())]
        found: dict[Any, Drift] = {}
        for done, (low, high) in enumerate(pairwise([None, *bounds, None]), start=1):
            with _trigger_path(conn):
                found |= step(conn, low, high)
            if progress is not None:
                progress(done, len(bounds) + 1)
        return found

    def _measure(self, conn: Connection, low: str | None, high: str | None) -> dict[Any, Drift]:
        return _drifts(conn, self._sql.measure(low, high))

    def _mend(self, conn: Connection, low: str | None, high: str | None) -> dict[Any, Drift]:
        conn.execute(self._sql.exclude_repairs())
        return _drifts(conn, self._sql.mend(low, high))


@contextmanager
def _trigger_path(conn: Connection) -> Iterator[None]:
    with conn.transaction():
        [(callers_path,)] = _fetch(conn, b"SELECT current_setting('search_path')")
        conn.execute("SELECT set_config('search_path', %s, true)", [SEARCH_PATH])
        yield
        conn.execute("SELECT set_config('search_path', %s, true)", [callers_path])


def _drifts(conn: Connection, query: Composed) -> dict[Any, Drift]:
    return {key: Drift(stored, actual) for key, stored, actual in _fetch(conn, query)}


def _fetch(conn: Connection, query: bytes | Composed, parameters: tuple[Any, ...] | None = None) -> list[Any]:
    """Run a query as psycopg does by itself, whatever row and cursor factories the connection has."""
    with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
        return cursor.execute(query, parameters).fetchall()
