"""What readers look at without a call: part of the pure twin of `leasecache._hits`."""

from collections.abc import Callable
from typing import Any


class ConnectionState:
    """The fields of a connection that readers look at."""

    __slots__ = ("epoch", "mark", "pooled", "term", "wire")

    wire: Any
    mark: Callable[[], bytes]  # for each command that makes a CAS
    epoch: int  # its number in the process's count of connections
    term: int  # how often its pool had been closed when it was opened
    pooled: bool  # it served before, and may have died since


class PoolState:
    """The fields of a pool that readers look at."""

    __slots__ = ("idle", "term", "waiting")

    idle: list[Any]  # connections, the latest last; the same list for ever
    term: int  # how often the pool has been closed
    waiting: int  # callers that wait for a connection


class EpochState:
    """The field of the count of connections that readers look at."""

    __slots__ = ("latest",)

    latest: int


class ProbeState:
    """The field of a node's back-off that readers look at."""

    __slots__ = ("delay",)

    delay: float  # s between two probes, 0 = up


class RecordState:
    """The fields of a guard record that readers look at; they never change."""

    __slots__ = ("head", "marks", "prefix", "reply")

    head: bytes  # of a request under its generation
    prefix: bytes  # of keys under its generation
    reply: bytes  # which shows that it has not changed
    marks: frozenset[bytes]  # of the functions that it vouches for


class TrustState:
    """The field of a node's trust that readers look at."""

    __slots__ = ("known",)

    known: Any  # the RecordState read last; None = none
