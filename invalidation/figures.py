"""The figures of one daemon for Prometheus: names and units stay as they are from version to version."""

import threading
from collections.abc import Callable
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

PrometheusCounter: TypeAlias = Counter
GUARD_STATES = ("fresh", "absent", "foreign", "renewing-stopped")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LABELS = 500  # values of one label; what comes later is counted together
_OTHER = "(other)"


class Names:
    """Admit so many names to a label and call all later ones "(other)": a series is never forgotten."""

    def __init__(self, most: int = _LABELS) -> None:
        self._most = most
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> str:
        """Return `name`, or what stands for it."""
        if name in self._known:
            return name
        with self._lock:
            if len(self._known) < self._most:
                self._known.add(name)
                return name
        return _OTHER


class Figures:
    """The Prometheus metrics of one daemon, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.nodes, self.tables, self.rules = Names(), Names(), Names()
        self._stream()
        self._caches()
        self._troubles()

    def _stream(self) -> None:
        self.info = self._gauge("info", "1; what runs is in the labels", "version", "implementation")
        self.streaming = self._gauge("streaming", "1 while the source streams")
        self.standing_by = self._gauge("standing_by", "1 while another daemon holds the slot and this one waits for it")
        self.received = self._gauge("received_lsn_bytes", "Position up to which the source has sent")
        self.acknowledged = self._gauge(
            "acknowledged_lsn_bytes", "Position W: all nodes have acknowledged all keys before it"
        )
        self.lag = self._gauge("lag_bytes", "Received position minus W")
        self.lag_seconds = self._gauge("lag_seconds", "How long what W has not passed has been there")
        self.pending = self._gauge("pending_keys", "Keys handed to nodes and not acknowledged")
        self.held = self._gauge("held_transactions", "Transactions that the gate holds")
        self.held_seconds = self._gauge("held_seconds", "How long the gate has held its oldest transaction")
        self.transactions = self._counter("transactions", "Transactions received")
        self.rows = self._counter("rows", "Changed rows received")
        self.keys = self._counter("keys", "Keys that transactions touched, de-duplicated within each")
        self.table_rows = self._counter("table_rows", "Changed rows received, by table", "table")
        self.rule_keys = self._counter("rule_keys", "Keys rendered, by cached function and table", "function", "table")
        self.messages = self._counter("messages", "Commit messages received")
        self.gate_wait = self._histogram("gate_wait_seconds", "From receiving a transaction to passing the gate")
        self.latency = self._histogram(
            "invalidation_latency_seconds", "From commit, by the source's clock, to W passing it"
        )

    def _caches(self) -> None:
        self.batches = self._counter("batches", "Batches acknowledged", "node")
        self.invalidations = self._counter("invalidations", "Keys acknowledged", "node")
        self.node_errors = self._counter("node_errors", "Batches that a node did not acknowledge", "node")
        self.node_up = self._gauge("node_up", "0 while a node does not acknowledge what it is sent", "node")
        self.guard = self._gauge("guard", "1 for the state that a node's guard record is in", "node", "state")
        self.journal_keys = self._gauge("journal_keys", "Keys kept for a node that is away", "node")
        self.journal_bytes = self._gauge("journal_bytes", "Size of what is kept for a node that is away", "node")
        self.bumps = self._counter("generation_bumps", "Times that all guarded values were given up")

    def _troubles(self) -> None:
        self.garbage = self._counter("garbled_messages", "Commit messages that were not understood, at least in part")
        self.losses = self._counter("unserved_changes", "Changes whose keys are not in the stream", "reason", "table")
        self.reconnects = self._counter("reconnects", "Conversations with the source that ended and were begun anew")
        self.decode_errors = self._counter("decode_errors", "Frames that could not be understood")
        self.rewinds = self._counter("reader_rewinds", "Times that a reader may have gone back in time", "reader")
        self.crashes = self._counter("unexpected_errors", "Errors that only the daemon's top loop caught")
        self.gaps = self._counter("gaps", "Times that changes were lost on the way to this daemon")
        self.recoveries = self._counter("recoveries", "Gaps that were recovered from")
        self.recovery_seconds = self._gauge("last_recovery_seconds", "How long the last recovery from a gap took")
        self.drift = self._gauge(
            "drift_findings", "What the last look at the source found; fatal: a rule cannot be served", "kind"
        )
        self.unready = self._gauge("unready_reasons", "Reasons why /readyz says no; 0 = ready")

    def served(self, **figures: Callable[[], float]) -> None:
        """Have gauges tell what the functions return when they are asked, so that the loop need not set them."""
        for name, function in figures.items():
            getattr(self, name).set_function(function)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"leasecache_daemon_{name}", help_text, labels, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"leasecache_daemon_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(f"leasecache_daemon_{name}", help_text, buckets=_SECONDS, registry=self.registry)
