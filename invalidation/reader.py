"""One database node that fills read from: asked without waiting, and connected to again when the connection is lost.

A node that crashes ends every connection and starts its processes anew, all but the postmaster; a hot standby may then
show an older state than before. So whoever holds a connection from before knows that there was no crash. After a lost
connection the checkpointer tells: it lives as long as the node runs without a crash, also through a promotion.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import psycopg
from psycopg import pq

from leasecache.errors import ConfigError, LeasecacheError, SourceError
from leasecache.invalidation.gate import QUESTION, Answer, parse_answer
from leasecache.invalidation.source import Connection, address, ask, connect

RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # s between attempts to reconnect
PATIENCE = 10.0  # s without an answer after which a connection is taken for dead

_SERVER = "select pg_postmaster_start_time()::text"
_IDENTITY = """select (select system_identifier from pg_control_system())::text,
    pg_postmaster_start_time()::text,
    (select pid || ' ' || backend_start from pg_stat_activity where backend_type = 'checkpointer'),
    pg_is_in_recovery(), pg_backend_pid(), current_user::text"""


class Identity(NamedTuple):
    """What tells a server, and one run of it, from others."""

    system: str  # the same on a primary and all its standbys
    server: str  # when its postmaster started: two servers never agree
    incarnation: str | None  # its checkpointer's pid and start; None = the role may not see it
    in_recovery: bool  # when it was connected to
    backend: int  # pid at the other end of the connection
    user: str


class Link(NamedTuple):
    """A connection to a node, and what is at its other end."""

    connection: Connection
    identity: Identity


def reach(dsn: str) -> Link:
    """Connect to the one server that `dsn` names.

    Raises ConfigError when two connections lead to different servers, SourceError when there is none.
    """
    link = connect(dsn)
    try:
        identity = Identity(*ask(link, _IDENTITY)[0])
        with closing(connect(dsn)) as other:
            if ask(other, _SERVER)[0][0] != identity.server:
                raise ConfigError(f"{address(dsn)} leads to different servers; name one node, not a balancer")
    except LeasecacheError:
        link.close()
        raise
    return Link(link, identity)


class Reader:
    """A node, connected or away. Everything but the search for a new connection happens in the caller's thread."""

    def __init__(self, dsn: str, wake: Callable[[], None]) -> None:
        """Prepare; nothing is opened. `wake` is called from another thread when `attend` has something to do."""
        self.name = address(dsn)
        self.identity: Identity | None = None  # the last one known
        self.answer: Answer | None = None  # to the question under way, None = not there yet
        self.rewound: str | None = None  # why it may show an older state than it did
        self.away: str | None = "not connected yet"  # why there is no connection
        self.system: str | None = None  # the database cluster that it must belong to
        self._dsn = dsn
        self._wake = wake
        self._link: Link | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"leasecache-{self.name}")
        self._search: Future[Link] | None = None
        self._retry_at = 0.0  # monotonic s
        self._delay = 0.0  # s before the next attempt to connect, 0 = the last connection was of use
        self._asked_at: float | None = None  # monotonic s

    def open(self) -> Identity:
        """Connect now. Raises ConfigError or SourceError."""
        link = self._reach()
        self._adopt(link)
        return link.identity

    def search(self, reason: str) -> None:
        """Connect in the background, as often as it takes; until then the node is away for this `reason`."""
        self.away = reason
        self._retry_at = time.monotonic() + self._delay
        self._delay = min(max(self._delay * 2, RETRY_FIRST), RETRY_MOST)

    @property
    def due(self) -> float | None:
        """When (monotonic s) the next attempt to connect is to be made, None while there is none to make."""
        return self._retry_at if self._link is None and self._search is None else None

    def _reach(self) -> Link:
        link = reach(self._dsn)
        if self.system not in (None, link.identity.system):
            link.connection.close()
            raise ConfigError(f"{self.name} is another database cluster than the source")
        return link

    def _adopt(self, link: Link) -> None:
        before, after = self.identity and self.identity.incarnation, link.identity.incarnation
        if self.identity is not None and (after is None or before != after):
            self.rewound = f"{self.name} {'restarted' if before and after else 'may have restarted'}"
        self._link, self.identity, self.away = link, link.identity, None

    @property
    def socket(self) -> int | None:
        """The descriptor that announces an answer or the end of the connection, None while away."""
        return None if self._link is None else self._link.connection.pgconn.socket

    def ask(self) -> None:
        """Send the question if there is a connection and no question under way."""
        if self._link is None or self._asked_at is not None:
            return
        try:
            self._link.connection.pgconn.send_query(QUESTION)
        except psycopg.Error as error:
            self._lose(_first_line(error))
        else:
            self._asked_at = time.monotonic()

    def attend(self) -> None:
        """Take what has come: a connection, an answer, the end of the connection."""
        if self._link is None:
            self._seek()
        if self._link is None:
            return
        try:
            self._receive(self._link)
        except (psycopg.Error, SourceError) as error:
            self._lose(_first_line(error))

    def _seek(self) -> None:
        if self._search is None:
            if time.monotonic() >= self._retry_at:
                self._search = self._pool.submit(self._reach)
                self._search.add_done_callback(lambda _: self._wake())
        elif self._search.done():
            search, self._search = self._search, None
            try:
                self._adopt(search.result())
            except LeasecacheError as error:
                self.search(str(error))

    def _receive(self, link: Link) -> None:
        server = link.connection.pgconn
        server.consume_input()
        if self._asked_at is None:
            return
        if server.is_busy():
            if time.monotonic() - self._asked_at > PATIENCE:
                raise SourceError(f"no answer for {PATIENCE:.0f} s")
            return
        result = server.get_result()
        while server.get_result() is not None:
            pass
        self._asked_at = None
        if result is None or result.status != pq.ExecStatus.TUPLES_OK:
            raise SourceError("the gate's question was refused")
        *answer, backend = (result.get_value(0, i) for i in range(4))
        if backend != b"%d" % link.identity.backend:
            raise SourceError("a pooler stands before the server; connect to the server itself")
        self.answer = parse_answer(*answer)
        self._delay = 0.0

    def _lose(self, reason: str) -> None:
        if self._link is not None:
            self._link.connection.close()
        self._link = self._asked_at = self.answer = None
        self.search(reason)

    def close(self) -> None:
        """Close the connection; one that is being made is closed when it is there."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._search is not None:
            self._search.add_done_callback(_hang_up)
        if self._link is not None:
            self._link.connection.close()
            self._link = None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _hang_up(search: "Future[Link]") -> None:
    if not search.cancelled() and search.exception() is None:
        search.result().connection.close()
