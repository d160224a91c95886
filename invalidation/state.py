"""What is known of a running daemon: plain values, written by its loop, read by whoever shows them."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from leasecache.invalidation.finding import Finding
from leasecache.invalidation.history import Chart, Lag, Meter, Troubles
from leasecache.invalidation.stream import Loss


@dataclass(slots=True)
class NodeState:
    """One cache node."""

    name: str
    since: float  # Unix s, of the last change
    down_since: float | None = None  # monotonic s
    error: str = ""  # the last one
    keys: Meter = field(default_factory=Meter)  # acknowledged
    guard: str | None = None  # one of GUARD_STATES, None = not told
    guard_since: float = 0.0  # monotonic s, of the last change of state
    guard_at: float = 0.0  # monotonic s, of the last word about it
    generation: int | None = None
    guard_told: tuple[str, int | None] | None = None  # what the log has said last
    journal_keys: int = 0
    journal_bytes: int = 0


@dataclass(slots=True)
class ReaderState:
    """One database node that fills read from."""

    name: str
    text: str  # what the gate knows of it
    holds: bool
    since: float  # Unix s, of the last change of `holds`


class JournalError(NamedTuple):
    """A journal that could not be written; it is tried again many times a second."""

    text: str
    at: float  # monotonic s, of the last time

    def is_over(self, now: float) -> bool:
        """Whether it has not happened again for a while."""
        return now - self.at > 10


@dataclass(slots=True)
class State:
    """One daemon."""

    version: str
    implementation: str
    limit: float  # s that W may be behind, or a gate, node or guard be stuck, before the daemon is not ready
    source: str = ""  # without a password
    slot: str = ""
    began: float = field(default_factory=time.time)  # Unix s
    streaming: bool = False
    streaming_since: float = 0.0  # Unix s
    reason: str = "starting"  # why it does not stream
    waiting: str | None = None  # for what: another daemon holds the slot
    gate: str = "none"
    gate_why: str = ""
    held: int = 0  # transactions
    held_since: float | None = None  # monotonic s
    readers: dict[str, ReaderState] = field(default_factory=dict)
    received: int = 0
    acknowledged: int = 0
    pending: int = 0
    latency: float = 0.0  # s from commit to W, the last transaction
    latency_at: float = 0.0  # monotonic s
    transactions: Meter = field(default_factory=Meter)
    tables: dict[str, Meter] = field(default_factory=dict)
    rules: dict[tuple[str, str], Meter] = field(default_factory=dict)  # (function, table)
    nodes: dict[str, NodeState] = field(default_factory=dict)
    journal_errors: dict[str, JournalError] = field(default_factory=dict)  # node, "*" = the note of W
    losses: Counter[Loss] = field(default_factory=Counter)  # that no new generation made up for
    gap: str | None = None
    gap_at: float = 0.0  # monotonic s
    drift: tuple[Finding, ...] = ()
    bumps: int = 0
    lag: Lag = field(default_factory=Lag)
    chart: Chart = field(default_factory=Chart)
    troubles: Troubles = field(default_factory=Troubles)

    @property
    def lag_bytes(self) -> int:
        """How far W is behind what has been received."""
        return max(0, self.received - self.acknowledged)

    def lag_seconds(self, now: float) -> float:
        """Return how old what W has not passed is, or what it passed a moment ago was, at `now` (monotonic s)."""
        recent = self.latency if now - self.latency_at < 5 else 0.0  # a source that catches up sends old changes
        return max(self.lag.seconds(now), recent)

    def node(self, name: str) -> NodeState:
        """Return what is known of a node."""
        if name not in self.nodes:
            self.nodes[name] = NodeState(name, time.time())
        return self.nodes[name]
