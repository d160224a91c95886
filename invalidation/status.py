"""What the daemon is doing, for operators: figures, readiness, and one log line for each change of state."""

import logging
import time
from collections import Counter as Tally
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from leasecache.errors import NodeError
from leasecache.invalidation.gate import View
from leasecache.invalidation.logs import event
from leasecache.invalidation.lsn import format_lsn
from leasecache.invalidation.stream import Loss, Transaction

HELD_TOO_LONG = 30.0  # s a gate or node may hold before the daemon is not ready
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """The Prometheus metrics of one daemon, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.received = self._gauge("received_lsn_bytes", "Position up to which the source has sent")
        self.acknowledged = self._gauge(
            "acknowledged_lsn_bytes", "Position W: all nodes have acknowledged all keys before it"
        )
        self.lag = self._gauge("lag_bytes", "Received position minus W")
        self.pending = self._gauge("pending_keys", "Keys handed to nodes and not acknowledged")
        self.held = self._gauge("held_transactions", "Transactions that the gate holds")
        self.streaming = self._gauge("streaming", "1 while the source streams")
        self.transactions = self._counter("transactions", "Transactions received")
        self.rows = self._counter("rows", "Changed rows received")
        self.keys = self._counter("keys", "Keys that transactions touched, de-duplicated within each")
        self.messages = self._counter("messages", "Commit messages received")
        self.garbage = self._counter("garbled_messages", "Commit messages that were not understood, at least in part")
        self.losses = self._counter("unserved_changes", "Changes whose keys are not in the stream", "reason", "table")
        self.batches = self._counter("batches", "Batches acknowledged", "node")
        self.invalidations = self._counter("invalidations", "Keys acknowledged", "node")
        self.node_errors = self._counter("node_errors", "Batches that a node did not acknowledge", "node")
        self.reconnects = self._counter("reconnects", "Conversations with the source that ended and were begun anew")
        self.decode_errors = self._counter("decode_errors", "Frames that could not be understood")
        self.crashes = self._counter("unexpected_errors", "Errors that only the daemon's top loop caught")
        self.gate_wait = self._histogram("gate_wait_seconds", "From receiving a transaction to passing the gate")
        self.latency = self._histogram(
            "invalidation_latency_seconds", "From commit, by the source's clock, to W passing it"
        )

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"leasecache_daemon_{name}", help_text, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"leasecache_daemon_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(f"leasecache_daemon_{name}", help_text, buckets=_SECONDS, registry=self.registry)


class Monitor:
    """Told by the daemon's loop what happens; read by the status server's threads."""

    def __init__(self) -> None:
        self.figures = Figures()
        self._gate = "none"
        self._streaming = False
        self._reason = "starting"
        self._gate_since: float | None = None
        self._nodes_since: dict[str, float] = {}  # node → monotonic s since which it fails
        self._losses: Tally[Loss] = Tally()
        self._garbled = False
        self._received = self._acknowledged = 0

    def connected(self, gate: str, why: str, **fields: object) -> None:
        """Note that the source streams, and which gate was chosen."""
        self._streaming, self._gate = True, gate
        self.figures.streaming.set(1)
        event(logging.INFO, "streaming", gate=gate, why=why, **fields)

    def disconnected(self, reason: str, retry_in: float) -> None:
        """Note that the conversation with the source is over."""
        changed = self._streaming or reason != self._reason
        self._streaming, self._reason = False, reason
        self._gate_since = None
        self.figures.held.set(0)  # they are repeated
        self.figures.streaming.set(0)
        self.figures.reconnects.inc()
        if changed:
            event(logging.WARNING, "disconnected", reason=reason, retry_in=f"{retry_in:.2g}")

    def decode_failed(self) -> None:
        """Note a frame that could not be understood."""
        self.figures.decode_errors.inc()

    def garbled(self, reason: str) -> None:
        """Note a commit message that was not understood; whoever may connect to the database can send some."""
        self.figures.garbage.inc()
        if not self._garbled:
            self._garbled = True
            fix = "send them with this or an older version of leasecache; further ones are only counted"
            event(logging.WARNING, "garbled-message", reason=reason, fix=fix)

    def received(self, transaction: Transaction) -> None:
        """Note a complete transaction."""
        touched = transaction.touched
        self.figures.transactions.inc()
        self.figures.rows.inc(touched.rows)
        self.figures.keys.inc(len(touched.keys))
        self.figures.messages.inc(touched.messages)
        for loss, count in touched.losses.items():
            self._lost(loss, count, transaction.end_lsn)

    def _lost(self, loss: Loss, count: int, end_lsn: int) -> None:
        self.figures.losses.labels(loss.reason, loss.table).inc(count)
        if loss not in self._losses:
            event(logging.ERROR, "unserved", **loss._asdict(), lsn=format_lsn(end_lsn), fix=_FIXES[loss.reason])
        self._losses[loss] += count

    def gate_answered(self, view: View) -> None:
        """Note which gate the answer makes: a standby may have been promoted."""
        gate = "standby" if view.in_recovery else "snapshot"
        if gate != self._gate:
            event(logging.WARNING, "gate", gate=gate, was=self._gate, why="the source was promoted")
            self._gate = gate

    def gate_held(self, since: float | None, transactions: int) -> None:
        """Note since when (monotonic s) the gate holds, None = not at all."""
        self._gate_since = since
        self.figures.held.set(transactions)

    def gate_passed(self, waited: float) -> None:
        """Note that a transaction passed the gate after `waited` s."""
        self.figures.gate_wait.observe(waited)

    def completed(self, transaction: Transaction) -> None:
        """Note that W has passed a transaction."""
        self.figures.latency.observe(max(0.0, time.time() - transaction.committed_at))

    def position(self, received: int, acknowledged: int, pending: int) -> None:
        """Note how far things are."""
        self._received, self._acknowledged = received, acknowledged
        self.figures.received.set(received)
        self.figures.acknowledged.set(acknowledged)
        self.figures.lag.set(max(0, received - acknowledged))
        self.figures.pending.set(pending)

    def invalidated(self, node: str, keys: int) -> None:
        """Note that a node has acknowledged a batch."""
        self.figures.batches.labels(node).inc()
        self.figures.invalidations.labels(node).inc(keys)

    def node_failed(self, node: str, error: NodeError) -> None:
        """Note that a node has not acknowledged a batch."""
        self.figures.node_errors.labels(node).inc()
        if node not in self._nodes_since:
            self._nodes_since[node] = time.monotonic()
            event(logging.WARNING, "node-down", node=node, error=error, w="held")

    def node_recovered(self, node: str) -> None:
        """Note that a node answers again."""
        self._nodes_since.pop(node, None)
        event(logging.INFO, "node-up", node=node)

    def crashed(self, error: BaseException) -> None:
        """Note an error that nobody expected."""
        self.figures.crashes.inc()
        event(logging.ERROR, "unexpected", error=f"{type(error).__name__}: {error}")

    def unready(self) -> list[str]:
        """Return why the daemon is not ready; an empty list means that it is."""
        now = time.monotonic()
        reasons = [] if self._streaming else [f"not streaming: {self._reason}"]
        if self._gate_since is not None and now - self._gate_since > HELD_TOO_LONG:
            reasons.append(f"the gate has held for {now - self._gate_since:.0f} s")
        for node, since in list(self._nodes_since.items()):
            if now - since > HELD_TOO_LONG:
                reasons.append(f"node {node} has not answered for {now - since:.0f} s")
        for loss, count in list(self._losses.items()):
            reasons.append(f"{count} changes of {loss.table} not served ({loss.reason}): {_FIXES[loss.reason]}")
        return reasons

    def summary(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        return {
            "streaming": self._streaming,
            "gate": self._gate,
            "received": format_lsn(self._received),
            "acknowledged": format_lsn(self._acknowledged),
            "lag_bytes": max(0, self._received - self._acknowledged),
            "failing_nodes": sorted(self._nodes_since),
            "not_ready": self.unready(),
        }


_AFTER = "clear the cache, then restart the daemon"
_FIXES = {
    "truncate": f"keys of truncated rows are unknown; {_AFTER}",
    "toast": f"an unchanged large value was not sent; set REPLICA IDENTITY FULL; {_AFTER}",
    "identity": f"the replica identity lacks a key column; run `leasecache check`; {_AFTER}",
    "column": f"a column of the rule is not in the stream; run `leasecache check`; {_AFTER}",
    "value": f"a column holds what its key field cannot; run `leasecache check`; {_AFTER}",
}
