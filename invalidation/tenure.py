"""Whether the slot is ours: asked over a connection of its own, so that unread changes cannot hide the answer.

Guard records are written only while this is known. The process at the other end of our replication connection is the
one that Postgres names as the slot's; when it dies, another daemon may have the slot a moment later.
"""

import threading
import time
from collections.abc import Callable

from leasecache.errors import LeasecacheError
from leasecache.invalidation.source import Connection, ask, connect

EVERY = 2.0  # s between two questions
_HOLDER = "select active_pid from pg_replication_slots where slot_name = %s"


class Tenure:
    """Asks in the background, from `watch` to `close`."""

    def __init__(self, dsn: str, slot: str, vouch: Callable[[float], None]) -> None:
        """`vouch` is called from another thread with a time (monotonic s) at which the slot was surely ours."""
        self._dsn = dsn
        self._slot = slot
        self._vouch = vouch
        self._over = threading.Event()

    def watch(self, pid: int) -> None:
        """Begin; `pid` is the server's process that serves our replication connection."""
        threading.Thread(target=self._run, args=(pid,), name="leasecache-tenure", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._over.set()

    def _run(self, pid: int) -> None:
        connection: Connection | None = None
        while not self._over.is_set():
            try:
                connection = connection or connect(self._dsn)
                began = time.monotonic()
                ours = ask(connection, _HOLDER, self._slot) == [(pid,)]
                if ours and not self._over.is_set():
                    self._vouch(began)
            except LeasecacheError:  # the conversation itself tells of what is wrong
                if connection is not None:
                    connection.close()
                connection = None
            self._over.wait(EVERY)
        if connection is not None:
            connection.close()
