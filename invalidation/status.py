"""What the daemon's loop tells of itself: figures, state, and one log line for each change of it."""

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

from leasecache import _accel
from leasecache.errors import NodeError
from leasecache.invalidation import readiness
from leasecache.invalidation.figures import GUARD_STATES, Figures, PrometheusCounter
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.gate import View
from leasecache.invalidation.history import Meter
from leasecache.invalidation.logs import event
from leasecache.invalidation.lsn import format_lsn
from leasecache.invalidation.state import JournalError, NodeState, ReaderState, State
from leasecache.invalidation.stream import Loss, Touched, Transaction
from leasecache.rules import Rule

READY_WITHIN = 30.0  # s


class _Series(NamedTuple):
    """A counter of Prometheus, found once, and the meter of the page beside it."""

    counter: PrometheusCounter
    meter: Meter

    def add(self, amount: int, now: float) -> None:
        self.counter.inc(amount)
        self.meter.add(amount, now)


class Monitor:
    """Told by the daemon's loop what happens; read by the status server's thread."""

    def __init__(
        self,
        nodes: Iterable[str] = (),
        rules: Iterable[Rule] = (),
        *,
        all_guarded: bool = False,
        limit: float = READY_WITHIN,
    ) -> None:
        """What is known of from the start is shown from the start, with zeros.

        `limit`: how long (s) W may be behind, or a gate, node or guard be stuck, before the daemon is not ready.
        `all_guarded`: no client goes without the guard, so that a new generation makes up for keys that are not known.
        """
        self._all_guarded = all_guarded
        self.state = State(version=version("leasecache"), implementation=_accel.IMPL, limit=limit)
        self.figures = Figures()
        self._tables: dict[str, _Series] = {}
        self._rules: dict[tuple[str, str], _Series] = {}
        self._nodes: dict[str, tuple[PrometheusCounter, _Series]] = {}  # batches, and keys
        self._garbled = False
        self._loss_told: set[Loss] = set()
        self._charted_at = 0.0
        self._recovering: tuple[bool, ...] | None = None
        self._serve()
        for name in nodes:
            self._node(name)
        for rule in rules:
            table = f"{rule.schema}.{rule.table}"
            self._begin_table(table)
            self._begin_rule(rule.function, table)

    def _serve(self) -> None:
        """Have gauges read the state when they are scraped: the loop turns too often to set them."""
        state = self.state
        self.figures.info.labels(state.version, state.implementation).set(1)
        for kind, fatal in (("fatal", True), ("advice", False)):
            count = partial(_count_findings, state, fatal=fatal)
            self.figures.drift.labels(kind).set_function(count)
        self.figures.served(
            streaming=lambda: float(state.streaming),
            standing_by=lambda: float(state.waiting is not None),
            received=lambda: state.received,
            acknowledged=lambda: state.acknowledged,
            lag=lambda: state.lag_bytes,
            lag_seconds=lambda: state.lag_seconds(time.monotonic()),
            pending=lambda: state.pending,
            held=lambda: state.held,
            held_seconds=lambda: 0.0 if (since := state.held_since) is None else time.monotonic() - since,
            unready=lambda: len(self.unready()),
        )

    def connected(self, gate: str, why: str, **fields: object) -> None:
        """Note that the source streams, and which gate was chosen; `fields` may name `source` and `slot`."""
        state = self.state
        state.streaming, state.streaming_since, state.waiting = True, time.time(), None
        state.gate, state.gate_why, self._recovering = gate, why, None
        state.source, state.slot = str(fields.get("source", "")), str(fields.get("slot", ""))
        event(logging.INFO, "streaming", gate=gate, why=why, **fields)

    def disconnected(self, reason: str, retry_in: float) -> None:
        """Note that the conversation with the source is over."""
        state = self.state
        changed = state.streaming or reason != state.reason
        state.streaming, state.reason = False, reason
        state.held, state.held_since = 0, None  # they are repeated
        state.waiting = None
        self.figures.reconnects.inc()
        for node in state.nodes.values():
            self._stop_renewing(node)
        if changed:
            self._trouble(logging.WARNING, "disconnected", reason, reason=reason, retry_in=f"{retry_in:.2g}")

    def standing_by(self, reason: str) -> None:
        """Note that another daemon holds the slot, and that this one waits for it."""
        if self.state.waiting is None:
            event(logging.INFO, "standing-by", reason=reason)
        self.state.waiting = reason

    def decode_failed(self) -> None:
        """Note a frame that could not be understood."""
        self.figures.decode_errors.inc()

    def garbled(self, reason: str) -> None:
        """Note a commit message that was not understood; whoever may connect to the database can send some."""
        self.figures.garbage.inc()
        if not self._garbled:
            self._garbled = True
            fix = "send them with this or an older version of leasecache; further ones are only counted"
            self._trouble(logging.WARNING, "garbled-message", reason, reason=reason, fix=fix)

    def received(self, transaction: Transaction) -> None:
        """Note a complete transaction."""
        touched, now = transaction.touched, time.monotonic()
        self.figures.transactions.inc(len(transaction.xids))
        self.figures.rows.inc(touched.rows)
        self.figures.keys.inc(len(touched))
        if touched.messages:
            self.figures.messages.inc(touched.messages)
        self.state.transactions.add(len(transaction.xids), now)
        self._count(touched, now)
        for loss, count in touched.losses.items():
            self._lost(loss, count, transaction.end_lsn)

    def _count(self, touched: Touched, now: float) -> None:
        """Count rows and keys where they came from; the rules name so many tables and functions, and no more."""
        for table, rows in touched.table_rows.items():
            (self._tables.get(table) or self._begin_table(table)).add(rows, now)
        for rule, keys in touched.rule_keys.items():
            (self._rules.get(rule) or self._begin_rule(*rule)).add(keys, now)

    def _begin_table(self, table: str) -> "_Series":
        shown = self.figures.tables(table)
        series = _Series(self.figures.table_rows.labels(shown), self.state.tables.setdefault(shown, Meter()))
        if shown == table:
            self._tables[table] = series
        return series

    def _begin_rule(self, function: str, table: str) -> "_Series":
        shown = self.figures.rules(function), self.figures.tables(table)
        series = _Series(self.figures.rule_keys.labels(*shown), self.state.rules.setdefault(shown, Meter()))
        if shown == (function, table):
            self._rules[shown] = series
        return series

    def _lost(self, loss: Loss, count: int, end_lsn: int) -> None:
        self.figures.losses.labels(loss.reason, self.figures.tables(loss.table)).inc(count)
        if loss not in self._loss_told:
            self._loss_told.add(loss)
            level = logging.WARNING if self._all_guarded else logging.ERROR
            fix = readiness.loss_text(loss.reason)
            if not self._all_guarded:
                fix += f"; {readiness.FIXES['unserved']}"
            self._trouble(level, "unserved", f"{loss.table}: {fix}", **loss._asdict(), lsn=format_lsn(end_lsn), fix=fix)
        if not self._all_guarded:
            self.state.losses[loss] += count

    def gate_answered(self, view: View) -> None:
        """Note who is in recovery: a standby may have been promoted."""
        recovering = tuple(answer.in_recovery for answer in view.answers)
        was, self._recovering = self._recovering, recovering
        if was is None and self.state.gate == "standby":
            was = (True, *recovering[1:])
        if was is not None and any(before and not now for before, now in zip(was, recovering, strict=False)):
            self.state.gate = "snapshot" if not any(recovering) else self.state.gate
            self.state.gate_why = "a node that was in recovery was promoted"
            self.state.troubles.note(time.time(), "gate", self.state.gate_why)

    def gate_held(self, since: float | None, transactions: int) -> None:
        """Note since when (monotonic s) the gate holds, None = not at all."""
        self.state.held_since, self.state.held = since, transactions

    def gate_passed(self, waited: float) -> None:
        """Note that a transaction passed the gate after `waited` s."""
        self.figures.gate_wait.observe(waited)

    def reader(self, name: str, text: str, *, holds: bool) -> None:
        """Note what the gate knows of a database node that fills read from, and whether it holds anything back."""
        known = self.state.readers.get(name)
        if known is None or known.holds != holds:
            self.state.readers[name] = ReaderState(name, text, holds, time.time())
        else:
            known.text = text

    def reader_rewound(self, name: str, reason: str) -> None:
        """Note that a reader may have gone back in time."""
        self.figures.rewinds.labels(name).inc()
        unguarded = "what unguarded functions read from it meanwhile stays until its ttl; clear the cache"
        self._trouble(logging.WARNING, "reader-rewound", reason, reason=reason, w="held", unguarded=unguarded)

    def completed(self, committed_at: float) -> None:
        """Note that W has passed a transaction that was committed then (Unix s)."""
        latency = max(0.0, time.time() - committed_at)
        self.state.latency, self.state.latency_at = latency, time.monotonic()
        self.figures.latency.observe(latency)

    def position(self, received: int, acknowledged: int, pending: int) -> None:
        """Note how far things are."""
        state, now = self.state, time.monotonic()
        state.received, state.acknowledged, state.pending = received, acknowledged, pending
        state.lag.note(received, acknowledged, now)
        if now - self._charted_at > 0.1:
            self._charted_at = now
            state.chart.note(time.time(), state.lag_bytes, state.lag_seconds(now))

    def invalidated(self, node: str, keys: int) -> None:
        """Note that a node has acknowledged a batch."""
        batches, series = self._nodes.get(node) or self._begin_node(node)
        batches.inc()
        series.add(keys, time.monotonic())

    def _begin_node(self, node: str) -> tuple[PrometheusCounter, _Series]:
        known = self._node(node)
        counted = self.figures.invalidations.labels(known.name)
        self._nodes[node] = self.figures.batches.labels(known.name), _Series(counted, known.keys)
        return self._nodes[node]

    def node_failed(self, node: str, error: NodeError) -> None:
        """Note that a node has not acknowledged a batch."""
        known = self._node(node)
        known.error = str(error)
        self.figures.node_errors.labels(known.name).inc()
        if known.down_since is None:
            known.down_since, known.since = time.monotonic(), time.time()
            self.figures.node_up.labels(known.name).set(0)
            self._stop_renewing(known)
            event(logging.WARNING, "node-down", node=node, error=error)
        text = str(error)
        self.state.troubles.note(time.time(), "node-down", text if node in text else f"{node}: {text}", of=node)

    def node_recovered(self, node: str) -> None:
        """Note that a node answers again."""
        known = self._node(node)
        known.down_since, known.since = None, time.time()
        self.figures.node_up.labels(known.name).set(1)
        event(logging.INFO, "node-up", node=node)

    def guarded(self, node: str, state: str, generation: int | None) -> None:
        """Note in which of GUARD_STATES the guard record of a node is, and the generation that it names."""
        known = self._node(node)
        known.guard_at = time.monotonic()
        self._set_guard(known, state, generation)
        if known.guard_told == (state, generation):
            return
        known.guard_told = state, generation
        shown = "-" if generation is None else f"{generation:016x}"
        fields: dict[str, object] = {"node": node, "state": state, "generation": shown}
        if state == "fresh":
            event(logging.INFO, "guard", **fields)
        else:
            self._trouble(logging.WARNING, "guard", f"{node}: {state}", **fields)

    def _set_guard(self, node: NodeState, state: str, generation: int | None) -> None:
        if node.guard != state:
            node.guard_since = time.monotonic()
            for each in GUARD_STATES:
                self.figures.guard.labels(node.name, each).set(each == state)
        node.guard, node.generation = state, generation

    def _stop_renewing(self, node: NodeState) -> None:
        """Note, without a line of its own, that a record which stands now will run out."""
        if node.guard == "fresh":
            self._set_guard(node, "renewing-stopped", node.generation)

    def journaled(self, node: str, keys: int, size_bytes: int) -> None:
        """Note how much is kept for a node that is away."""
        known = self._node(node)
        if bool(keys) != bool(known.journal_keys):
            event(logging.INFO, "journal-begun" if keys else "journal-empty", node=node)
        if self.state.journal_errors.pop(node, None) is not None:
            event(logging.INFO, "journal-works", node=node)
        known.journal_keys, known.journal_bytes = keys, size_bytes
        self.figures.journal_keys.labels(known.name).set(keys)
        self.figures.journal_bytes.labels(known.name).set(size_bytes)

    def journal_failed(self, node: str, error: Exception) -> None:
        """Note that the journal of a node, "*" = the note of W, cannot be written."""
        now = time.monotonic()
        known = self.state.journal_errors.get(node)
        self.state.journal_errors[node] = JournalError(str(error), now)
        if known is None or known.is_over(now):
            self._trouble(logging.ERROR, "journal-failed", f"{node}: {error}", node=node, error=error, w="held")

    def bumped(self, reason: str) -> None:
        """Note that all guarded values were given up for a new generation."""
        self.state.bumps += 1
        self.figures.bumps.inc()
        self._trouble(logging.WARNING, "generation-bumped", readiness.LOSSES.get(reason, reason), reason=reason)

    def gap(self, reason: str) -> None:
        """Note that changes were lost on the way to this daemon."""
        if self.state.gap is None:
            self.figures.gaps.inc()
            self.state.gap_at = time.monotonic()
            self._trouble(logging.ERROR, "gap", reason, reason=reason)
        self.state.gap = reason

    def recovered(self, seconds: float) -> None:
        """Note that a gap was recovered from, which took so long."""
        self.state.gap = None
        self.figures.recoveries.inc()
        self.figures.recovery_seconds.set(seconds)
        event(logging.INFO, "gap-recovered", seconds=f"{seconds:.1f}")

    def drifted(self, findings: Sequence[Finding]) -> None:
        """Note what keeps the source from serving the rules as of now; each finding is logged once."""
        known = {finding.sentence() for finding in self.state.drift}
        for finding in findings:
            if (sentence := finding.sentence()) not in known:
                level = logging.ERROR if finding.fatal else logging.WARNING
                self._trouble(level, "drift", sentence, code=finding.code, finding=sentence)
        if self.state.drift and not findings:
            event(logging.INFO, "drift-over")
        self.state.drift = tuple(findings)

    def crashed(self, error: BaseException) -> None:
        """Note an error that nobody expected."""
        self.figures.crashes.inc()
        text = f"{type(error).__name__}: {error}"
        self._trouble(logging.ERROR, "unexpected", text, error=text)

    def unready(self) -> list[str]:
        """Return why the daemon is not ready, a line each; an empty list means that it is."""
        return [reason.line() for reason in readiness.reasons(self.state, time.monotonic())]

    def _node(self, name: str) -> NodeState:
        shown = self.figures.nodes(name)
        if shown not in self.state.nodes:
            self.figures.node_up.labels(shown).set(1)
        return self.state.node(shown)

    def _trouble(self, level: int, name: str, text: str, **fields: object) -> None:
        self.state.troubles.note(time.time(), name, text)
        event(level, name, **fields)


def _count_findings(state: State, *, fatal: bool) -> float:
    return sum(finding.fatal is fatal for finding in state.drift)
