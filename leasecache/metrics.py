"""What happened to calls and to nodes: counters and time histograms kept where things happen, and a snapshot of them.

Nothing here takes a lock. `x.n += 1` on a slot is done in one go under the GIL: CPython (3.10 and newer) hands it over
only at calls and at jumps back, and there is neither between the read and the write. So counts are exact among threads;
without the GIL (free-threaded builds) two threads may count one event between them.
"""

import time
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from leasecache._accel import Tally
from leasecache.errors import NodeError, NodeTimeout, ProtocolError
from leasecache.fork import forget_after_fork

if TYPE_CHECKING:
    from leasecache.keys import KeyTemplate
    from leasecache.stores.base import AsyncStore, Store
    from leasecache.stores.trust import Trust

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # s


class Histogram:
    """Counts durations in buckets: `counts[i]` are those of at most `BOUNDS[i]` s, the last those above all bounds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0  # s

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        bucket = bisect_left(BOUNDS, seconds)  # a call, so not between the read and the write of the next line
        self.counts[bucket] += 1
        self.total += seconds


class FunctionStats(Tally):
    """One function's counters since the process started or was forked; `hits` is where plain hits count themselves."""

    __slots__ = (
        "__weakref__",
        "failed",
        "loaded",
        "misread",
        "misses",
        "refused",
        "stale",
        "stolen",
        "unguarded",
        "unleased",
        "waited",
        "won",
    )

    def __init__(self) -> None:
        super().__init__()
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Count from nothing: what the parent has counted, the parent reports."""
        self.hits = 0  # calls answered by a fresh value at once
        self.stale = 0  # calls answered by a stale value at once
        self.misses = 0  # calls that found neither
        self.won = 0  # leases won, those stolen and those to refresh a value in hand too
        self.stolen = 0  # leases taken from a holder that took too long
        self.refused = 0  # lease-sets that the store refused: the value may be older than an invalidation, or too large
        self.unguarded = 0  # calls that did without the cache, because no daemon vouched for the node
        self.unleased = 0  # loads without a lease: node down, waited too long, value that cannot be stored
        self.misread = 0  # stored values of another type or version, dropped
        self.failed = 0  # loads that raised
        self.waited = Histogram()  # s that calls waited for somebody else's load
        self.loaded = Histogram()  # s that loads took


class NodeStats:
    """One node's errors by kind since the process started or was forked, and since when it is left alone.

    The nodes of a cluster that routes by itself share one, and are up when all of them are.
    """

    __slots__ = ("__weakref__", "_marks", "broken", "down", "protocol", "timeout")

    def __init__(self) -> None:
        self._marks: dict[weakref.ref[object], float] = {}  # who leaves a node alone, since when (monotonic s)
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Count from nothing; a node that the parent found down is still left alone."""
        self.timeout = 0  # no answer within the time limit, or no connection free within it
        self.broken = 0  # connection refused, reset, or ended in the middle
        self.protocol = 0  # an answer that the protocol does not allow
        self.down = 0  # not asked, because it is marked down

    @property
    def down_since(self) -> float | None:
        """When a node was marked down that still is, on the monotonic clock; None = up, or not asked yet."""
        return min((since for probe, since in list(self._marks.items()) if probe() is not None), default=None)

    def mark(self, probe: object) -> None:
        """Note that `probe` leaves its node alone from now on, if it does not yet."""
        self._marks.setdefault(weakref.ref(probe), time.monotonic())

    def unmark(self, probe: object) -> None:
        """Note that the node of `probe` is up."""
        self._marks.pop(weakref.ref(probe), None)

    def count(self, error: NodeError) -> None:
        """Count one error that talking to the node has raised."""
        if isinstance(error, NodeTimeout):
            self.timeout += 1
        elif isinstance(error, ProtocolError):
            self.protocol += 1
        else:
            self.broken += 1


class Measured(Protocol):
    """A cached function, as far as its figures are concerned."""

    @property
    def name(self) -> str: ...
    @property
    def template(self) -> "KeyTemplate": ...
    @property
    def stats(self) -> FunctionStats: ...


@runtime_checkable
class Watched(Protocol):
    """A node on the network: its errors, its connections as (open, of these idle), and whether it is believed."""

    @property
    def errors(self) -> NodeStats: ...
    @property
    def connections(self) -> tuple[int, int]: ...
    @property
    def trust(self) -> "Trust | None": ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A histogram: `counts[i]` durations are above `bounds[i - 1]` and at most `bounds[i]` s, the last above all."""

    bounds: tuple[float, ...]  # s
    counts: tuple[int, ...]
    count: int
    sum: float  # s
    p50: float | None  # s, as `quantile` estimates it
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionFigures:
    """What happened to the calls of one function; the counters are those of `FunctionStats`."""

    name: str
    template: str
    hits: int
    stale: int
    misses: int
    hit_ratio: float | None  # share of calls that were answered at once, by a fresh or stale value
    won: int
    stolen: int
    refused: int
    unguarded: int
    unleased: int
    misread: int
    failed: int
    waited: Times
    loaded: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFigures:
    """What this process has seen of one node."""

    name: str
    errors: dict[str, int]  # by kind: timeout, broken, protocol, down
    up: bool  # False while it is marked down
    down_for: float | None  # s since the failure that marked it down
    connections_open: int
    connections_idle: int
    guard: str | None  # its record when last read: "fresh", "absent", "foreign" or "unread"; None = not guarded


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What this process knows of one cache."""

    namespace: str | None
    hit_ratio: float | None  # over all functions
    functions: tuple[FunctionFigures, ...]
    nodes: tuple[NodeFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """Return nested dicts, lists and numbers that `json.dumps` takes."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def snapshot(functions: Iterable[Measured], store: "Store | AsyncStore | None") -> Stats:
    """Return the figures of a cache's functions and of its store's nodes, as they are now; asks no node anything."""
    figures = tuple(_function(function) for function in functions)
    found = sum(one.hits + one.stale for one in figures)
    return Stats(
        namespace=store.namespace if store else None,
        hit_ratio=_ratio(found, sum(one.misses for one in figures)),
        functions=figures,
        nodes=tuple(_node(node.name, node) for node in store.nodes) if store else (),
    )


def quantile(q: float, counts: Sequence[int]) -> float | None:
    """Estimate a quantile in s, evenly spread within its bucket; None of nothing, the last bound above all bounds.

    This is what Prometheus' histogram_quantile() makes of the same buckets.
    """
    rank, below = q * sum(counts), 0
    for i, bound in enumerate(BOUNDS):
        if counts[i] and below + counts[i] >= rank:
            lower = BOUNDS[i - 1] if i else 0.0
            return lower + (bound - lower) * (rank - below) / counts[i]
        below += counts[i]
    return BOUNDS[-1] if counts[-1] else None


def _function(function: Measured) -> FunctionFigures:
    stats = function.stats
    hits, stale, misses = stats.hits, stats.stale, stats.misses
    return FunctionFigures(
        name=function.name,
        template=function.template.text,
        hits=hits,
        stale=stale,
        misses=misses,
        hit_ratio=_ratio(hits + stale, misses),
        won=stats.won,
        stolen=stats.stolen,
        refused=stats.refused,
        unguarded=stats.unguarded,
        unleased=stats.unleased,
        misread=stats.misread,
        failed=stats.failed,
        waited=_times(stats.waited),
        loaded=_times(stats.loaded),
    )


def _times(histogram: Histogram) -> Times:
    counts = tuple(histogram.counts)
    return Times(
        bounds=BOUNDS,
        counts=counts,
        count=sum(counts),
        sum=histogram.total,
        p50=quantile(0.5, counts),
        p99=quantile(0.99, counts),
    )


def _node(name: str, node: object) -> NodeFigures:
    if not isinstance(node, Watched):  # in this process: there is nothing that can fail
        return NodeFigures(
            name=name, errors={}, up=True, down_for=None, connections_open=0, connections_idle=0, guard=None
        )
    errors, (opened, idle) = node.errors, node.connections
    since, trust = errors.down_since, node.trust
    return NodeFigures(
        name=name,
        errors={kind: getattr(errors, kind) for kind in ("timeout", "broken", "protocol", "down")},
        up=since is None,
        down_for=None if since is None else time.monotonic() - since,
        connections_open=opened,
        connections_idle=idle,
        guard=trust.state if trust is not None else None,
    )


def _ratio(found: int, others: int) -> float | None:
    return found / (found + others) if found + others else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
