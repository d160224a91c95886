"""The gate's rule: a transaction's keys are invalidated only once every new snapshot of every reader shows it.

A reader is a database node that fills read from. A standby shows what it has replayed. A primary sends a commit when
it is flushed and shows it later, after the wait for synchronous standbys: there the transaction's xid must have left
the set of those in progress, and comparing log positions would not do. A standby may become a primary at any time, so
every answer says which of the two the reader is.
"""

import re
from typing import Literal, NamedTuple, TypeAlias

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.lsn import parse_lsn

GateName: TypeAlias = Literal["standby", "replay", "snapshot", "none"]

QUESTION = b"select pg_is_in_recovery(), pg_current_snapshot(), pg_last_wal_replay_lsn(), pg_backend_pid()"
_SNAPSHOT = re.compile(rb"\d+:(\d+):((?:\d+(?:,\d+)*)?)")
_HALF, _EPOCH = 1 << 31, 1 << 32


class Answer(NamedTuple):
    """What new snapshots of one node saw when it was asked."""

    in_recovery: bool
    next_xid: int  # 64 bits: this transaction and later ones had not begun
    in_progress: frozenset[int]  # 64 bits
    replayed: int | None = None  # position up to which a standby has replayed the log, None = nothing yet

    def shows(self, xid: int, end_lsn: int) -> bool:
        """Return whether a transaction received before the question is visible; `xid` has 32 bits."""
        if self.in_recovery:
            return self.reaches(end_lsn)
        # The epoch that Begin lacks is the one that brings xid closest to the next one: nothing in the log is 2^31 old.
        distance = (xid - self.next_xid + _HALF) % _EPOCH - _HALF
        return distance < 0 and self.next_xid + distance not in self.in_progress

    def hides(self, xids: tuple[int, ...], end_lsn: int) -> tuple[int, ...]:
        """Return which of the transactions of one place in the log are not visible; `shows` for many at once."""
        if self.in_recovery:
            return () if self.reaches(end_lsn) else xids
        oldest, newest = min(xids, default=0), max(xids, default=0)
        began = newest - oldest < _HALF and self._began(oldest) and self._began(newest)  # and those between them
        if began and {xid % _EPOCH for xid in self.in_progress}.isdisjoint(xids):
            return ()
        return tuple(xid for xid in xids if not self.shows(xid, end_lsn))

    def _began(self, xid: int) -> bool:
        return (xid - self.next_xid + _HALF) % _EPOCH < _HALF

    def reaches(self, position: int) -> bool:
        """Return whether everything that has been shown before `position` is shown; a primary forgets nothing of it."""
        return not self.in_recovery or (self.replayed is not None and self.replayed >= position)


class View(NamedTuple):
    """What new snapshots of all readers saw."""

    answers: tuple[Answer, ...]
    rewound: str | None = None  # which of them may have gone back in time since it was last trusted, and why

    def shows(self, xid: int, end_lsn: int) -> bool:
        """Return whether a transaction received before the question is visible on every reader."""
        return all(answer.shows(xid, end_lsn) for answer in self.answers)

    def hides(self, xids: tuple[int, ...], end_lsn: int) -> tuple[int, ...]:
        """Return which of the transactions of one place in the log are not visible on some reader."""
        if len(self.answers) == 1:
            return self.answers[0].hides(xids, end_lsn)
        hidden = {xid for answer in self.answers for xid in answer.hides(xids, end_lsn)}
        return tuple(xid for xid in xids if xid in hidden) if hidden else ()

    def reaches(self, position: int) -> bool:
        """Return whether every reader shows everything that has been shown before `position`."""
        return all(answer.reaches(position) for answer in self.answers)


def parse_answer(in_recovery: bytes | None, snapshot: bytes | None, replayed: bytes | None) -> Answer:
    """Read a node's answer to QUESTION. Raises SourceError when it is none."""
    match = _SNAPSHOT.fullmatch(snapshot or b"")
    if match is None:
        raise SourceError(f"pg_current_snapshot() answered {snapshot!r}")
    try:
        position = None if replayed is None else parse_lsn(replayed.decode(errors="replace"))
    except ValueError:
        raise SourceError(f"pg_last_wal_replay_lsn() answered {replayed!r}") from None
    in_progress = frozenset(int(xid) for xid in match[2].split(b",") if xid)
    return Answer(in_recovery == b"t", int(match[1]), in_progress, position)


def choose(setting: str, *, in_recovery: bool) -> tuple[GateName, str]:
    """Return the source's own gate under `[source] gate`, "none" when fills do not read there, and why.

    Raises ConfigError when the server cannot honour the setting.
    """
    if setting == "replay":
        return "none", "fills read from the readers only"
    if in_recovery:
        if setting == "snapshot":
            raise ConfigError("source.gate: snapshot needs a primary, but the source is a standby; use standby or auto")
        return "standby", "the source is in recovery and sends only what it has replayed"
    if setting == "standby":
        raise ConfigError("source.gate: standby needs a standby, but the source is a primary; use snapshot or auto")
    return "snapshot", "the source is a primary and sends commits before they are visible"


def choose_for_reader(*, in_recovery: bool) -> tuple[GateName, str]:
    """Return the gate of one of `[source] readers`, and why."""
    if in_recovery:
        return "replay", "the reader is in recovery and shows what it has replayed"
    return "snapshot", "the reader is a primary and shows commits after they are flushed"
