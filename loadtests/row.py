"""One row in Postgres that is slow to read, over a few connections that greenlets share."""

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import locust  # noqa: F401 - before psycopg, which chooses how to wait when it is imported
import psycopg

CONNECTIONS = 20
WITHIN = 30  # s a statement may take, and a caller waits for a connection
HOT = 1  # id of the row


class HotRow:
    """A row with a version that counts its updates."""

    failures = (psycopg.Error, queue.Empty)  # the second: all connections stayed busy

    def __init__(self, dsn: str) -> None:
        """Create the table, or take over the one of an earlier run. Raises psycopg.Error."""
        self._dsn = dsn
        self._idle: queue.LifoQueue[psycopg.Connection[Any] | None] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put(None)  # not opened yet
        with self._connection() as connection:
            connection.execute("create table if not exists hot_rows (id int primary key, version int not null)")
            connection.execute("insert into hot_rows values (%s, 0) on conflict do nothing", [HOT])

    def read(self, row_id: int, seconds: float) -> int:
        """Return the version, `seconds` after it was read: an update meanwhile makes it an old one."""
        return self._number("select version, pg_sleep(%s) from hot_rows where id = %s", seconds, row_id)

    def update(self, row_id: int) -> int:
        """Commit the next version and return it."""
        return self._number("update hot_rows set version = version + 1 where id = %s returning version", row_id)

    def close(self) -> None:
        """Close the connections; nobody may use them any more."""
        for _ in range(CONNECTIONS):
            connection = self._idle.get(timeout=WITHIN)
            if connection is not None:
                connection.close()

    def _number(self, statement: str, *parameters: float) -> int:
        with self._connection() as connection:
            found = connection.execute(statement, parameters).fetchone()
            return int(found[0]) if found else 0

    @contextlib.contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        connection = self._idle.get(timeout=WITHIN)
        try:
            connection = connection or self._connect()
            yield connection
        except BaseException:  # half an answer may be on its way, also when locust kills the greenlet
            if connection is not None:
                connection.close()
            connection = None
            raise
        finally:
            self._idle.put(connection)

    def _connect(self) -> psycopg.Connection[Any]:
        limit = f"-c statement_timeout={WITHIN}s"
        return psycopg.connect(self._dsn, autocommit=True, connect_timeout=WITHIN, options=limit)
