"""The state of a daemon as one JSON document, from which the page is drawn, too."""

import time
from typing import Any

from leasecache.invalidation.history import STEP, Meter
from leasecache.invalidation.lsn import format_lsn
from leasecache.invalidation.readiness import reasons
from leasecache.invalidation.state import NodeState, State


def summary(state: State) -> dict[str, Any]:
    """Return the state as a JSON object; times are Unix s, durations s, rates per s."""
    now, at = time.monotonic(), time.time()
    return {
        "version": state.version,
        "implementation": state.implementation,
        "source": state.source,
        "slot": state.slot,
        "at": at,
        "uptime": at - state.began,
        "streaming": state.streaming,
        "streaming_since": state.streaming_since or None,
        "standing_by": state.waiting,
        "not_ready": [reason._asdict() for reason in reasons(state, now)],
        **_position(state, now),
        **_gate(state, now),
        "transactions_per_second": state.transactions.rate(now),
        "tables": [{"table": table, "rows": _meter(meter, now)} for table, meter in sorted(state.tables.items())],
        "rules": [
            {"function": function, "table": table, "keys": _meter(meter, now)}
            for (function, table), meter in sorted(state.rules.items())
        ],
        "nodes": [_node(node, now, at) for _, node in sorted(state.nodes.items())],
        "failing_nodes": sorted(node.name for node in list(state.nodes.values()) if node.down_since is not None),
        "bumps": state.bumps,
        "gap": state.gap,
        "drift": [finding.to_json() for finding in state.drift],
        "errors": [
            {"at": trouble.at, "event": trouble.event, "text": trouble.text, "times": trouble.times}
            for trouble in state.troubles.latest()
        ],
        "chart": {"step": STEP, "steps": [list(step) for step in state.chart.steps(at)]},
    }


def _position(state: State, now: float) -> dict[str, Any]:
    return {
        "received": format_lsn(state.received),
        "acknowledged": format_lsn(state.acknowledged),
        "lag_bytes": state.lag_bytes,
        "lag_seconds": state.lag_seconds(now),
        "latency_seconds": state.latency,
        "pending_keys": state.pending,
    }


def _gate(state: State, now: float) -> dict[str, Any]:
    return {
        "gate": state.gate,
        "gate_why": state.gate_why,
        "held_transactions": state.held,
        "held_seconds": None if state.held_since is None else now - state.held_since,
        "readers": [
            {"reader": reader.name, "holds": reader.holds, "text": reader.text, "since": reader.since}
            for _, reader in sorted(state.readers.items())
        ],
    }


def _node(node: NodeState, now: float, at: float) -> dict[str, Any]:
    return {
        "node": node.name,
        "up": node.down_since is None,
        "since": node.since if node.down_since is None else at - (now - node.down_since),
        "error": node.error,
        "keys": _meter(node.keys, now),
        "guard": None if node.guard is None else _guard(node, now),
        "journal": {"keys": node.journal_keys, "bytes": node.journal_bytes},
    }


def _guard(node: NodeState, now: float) -> dict[str, Any]:
    generation = None if node.generation is None else f"{node.generation:016x}"
    return {"state": node.guard, "generation": generation, "age": now - node.guard_at, "for": now - node.guard_since}


def _meter(meter: Meter, now: float) -> dict[str, Any]:
    return {"total": meter.total, "per_second": meter.rate(now)}
