"""Why a daemon is not ready: each reason has a code, what is the matter, and what to do, in one line."""

from collections.abc import Iterator
from typing import NamedTuple

from leasecache.invalidation.state import NodeState, State

_AFTER = "clear the cache, then restart the daemon"
LOSSES = {
    "truncate": "keys of truncated rows are unknown",
    "toast": "an unchanged large value was not sent; set REPLICA IDENTITY FULL",
    "identity": "the replica identity lacks a key column; run `leasecache check`",
    "column": "a column of the rule is not in the stream; run `leasecache check`",
    "value": "a column holds what its key field cannot; run `leasecache check`",
    "keys": "a transaction touched more keys than limits.transaction_keys",
    "namespace": "a commit message named the whole namespace",
    "messages": "a transaction's commit messages named more keys than limits.transaction_keys",
}
FIXES = {
    "not-streaming": "look at the source and at the daemon's log; it tries again by itself",
    "standing-by": "nothing, while the other daemon is well; this one takes over when that one ends",
    "gap": "wait: the daemon makes a new slot and gives up all guarded values; see the runbook if it lasts",
    "gate-held": "look at the standbys: replay may be paused, or a synchronous one away",
    "reader": "bring the database node back, or take it out of source.readers and let no fill read from it",
    "lag": "look at the nodes and the readers: the slowest one sets the pace",
    "node-down": "bring the cache node back, or take it out of the ring",
    "journal": "free space in journal.directory, and look at its rights; W is held until it can be written",
    "guard": "clients load from the database meanwhile; see that this daemon alone follows the slot",
    "drift": "run `leasecache setup --apply`, or what `leasecache check` says",
    "unserved": _AFTER,
}


class Reason(NamedTuple):
    """One reason."""

    code: str  # a key of FIXES
    text: str
    fix: str

    def line(self) -> str:
        """Return the reason in one line."""
        return " ".join(f"{self.code}: {self.text}; {self.fix}".split())


def loss_text(reason: str) -> str:
    """Return what a loss of `reason` means, and what keeps the next one away."""
    return LOSSES.get(reason, "its keys are not in the stream")


def reasons(state: State, now: float) -> list[Reason]:
    """Return why the daemon is not ready at `now` (monotonic s); an empty list means that it is."""
    return [Reason(code, text, FIXES[code]) for code, text in _found(state, now)]


def _found(state: State, now: float) -> Iterator[tuple[str, str]]:
    if state.waiting is not None:
        yield "standing-by", state.waiting
    elif not state.streaming:
        yield "not-streaming", state.reason
    if state.gap is not None:
        yield "gap", f"changes were lost ({state.gap})"
    if state.held_since is not None and now - state.held_since > state.limit:
        yield "gate-held", f"the gate has held for {now - state.held_since:.0f} s"
    for reader in list(state.readers.values()):
        if reader.holds:
            yield "reader", f"reader {reader.name} holds the gate: {reader.text}"
    if (lag := state.lag_seconds(now)) > state.limit:
        yield "lag", f"W is {lag:.0f} s behind, over the limit of {state.limit:g} s"
    for node in list(state.nodes.values()):
        yield from _node(node, now, state.limit)
    for error in list(state.journal_errors.values()):
        if not error.is_over(now):
            yield "journal", f"the journal cannot be written: {error.text}"
    for finding in state.drift:
        if finding.fatal:
            yield "drift", finding.sentence()
    for loss, count in list(state.losses.items()):
        yield "unserved", f"{count} changes of {loss.table} not served ({loss.reason}): {loss_text(loss.reason)}"


def _node(node: NodeState, now: float, limit: float) -> Iterator[tuple[str, str]]:
    if node.down_since is not None:
        if now - node.down_since > limit:
            yield "node-down", f"node {node.name} has not answered for {now - node.down_since:.0f} s"
    elif node.guard not in (None, "fresh") and now - node.guard_since > limit:
        yield "guard", f"the guard record of {node.name} has been {node.guard} for {now - node.guard_since:.0f} s"
