"""The gate: a transaction's keys are invalidated only once every new snapshot of the readers' node shows it.

A standby's walsender sends only what that standby has replayed, so there a received transaction is a visible one. A
primary sends a commit when it is flushed and shows it later, after the wait for synchronous standbys: there the
transaction's xid must have left the set of those in progress. Comparing log positions would not do. One question
serves both, and it is put again for every batch, because a standby may have become a primary since.
"""

import re
from typing import Any, Literal, NamedTuple, TypeAlias

import psycopg
from psycopg import pq

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.source import ask, connect

GateName: TypeAlias = Literal["standby", "snapshot"]

QUESTION = b"select pg_is_in_recovery(), pg_current_snapshot()"
_SNAPSHOT = re.compile(rb"\d+:(\d+):((?:\d+(?:,\d+)*)?)")
_HALF, _EPOCH = 1 << 31, 1 << 32


class View(NamedTuple):
    """What new snapshots of the node saw when it was asked."""

    in_recovery: bool
    next_xid: int  # 64 bits: this transaction and later ones had not begun
    in_progress: frozenset[int]  # 64 bits

    def shows(self, xid: int) -> bool:
        """Return whether a transaction received before the question is visible; `xid` has 32 bits."""
        if self.in_recovery:
            return True
        # The epoch that Begin lacks is the one that brings xid closest to the next one: nothing in the log is 2^31 old.
        distance = (xid - self.next_xid + _HALF) % _EPOCH - _HALF
        return distance < 0 and self.next_xid + distance not in self.in_progress


def parse_view(in_recovery: bytes | None, snapshot: bytes | None) -> View:
    """Read the answer to QUESTION. Raises SourceError when it is none."""
    match = _SNAPSHOT.fullmatch(snapshot or b"")
    if match is None:
        raise SourceError(f"pg_current_snapshot() answered {snapshot!r}")
    in_progress = frozenset(int(xid) for xid in match[2].split(b",") if xid)
    return View(in_recovery == b"t", int(match[1]), in_progress)


def choose(setting: str, *, in_recovery: bool) -> tuple[GateName, str]:
    """Return the gate for `[source] gate` and why. Raises ConfigError when the server cannot honour the setting."""
    if in_recovery:
        if setting == "snapshot":
            raise ConfigError("source.gate: snapshot needs a primary, but the source is a standby; use standby or auto")
        return "standby", "the source is in recovery and sends only what it has replayed"
    if setting == "standby":
        raise ConfigError("source.gate: standby needs a standby, but the source is a primary; use snapshot or auto")
    return "snapshot", "the source is a primary and sends commits before they are visible"


class Gate:
    """The question, put over a connection of its own without waiting for the answer."""

    def __init__(self, dsn: str) -> None:
        """Connect. Raises SourceError when that fails."""
        self._connection = connect(dsn)
        self._pq = self._connection.pgconn
        self.asked = False

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of another question, waiting for them."""
        return ask(self._connection, sql)

    @property
    def socket(self) -> int:
        """The descriptor to wait on while asked."""
        return self._pq.socket

    def ask(self) -> None:
        """Send the question."""
        try:
            self._pq.send_query(QUESTION)
        except psycopg.Error as error:
            raise SourceError(f"the gate lost its connection: {error}") from None
        self.asked = True

    def answer(self) -> View | None:
        """Return the answer, None while it is not there. Raises SourceError when the connection broke."""
        try:
            self._pq.consume_input()
            if self._pq.is_busy():
                return None
            result = self._pq.get_result()
            while self._pq.get_result() is not None:
                pass
        except psycopg.Error as error:
            raise SourceError(f"the gate lost its connection: {error}") from None
        self.asked = False
        if result is None or result.status != pq.ExecStatus.TUPLES_OK:
            raise SourceError("the gate's question was refused")
        return parse_view(result.get_value(0, 0), result.get_value(0, 1))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
