"""What a reader may be given, and the history of what happened."""

from collections import Counter, deque
from typing import NamedTuple

from tests.simulation.database import Database
from tests.simulation.kernel import STARTED

REMEMBERED = 400  # events
NOTICED_WITHIN = 2.0  # s: that a standby went back in time


class Due(NamedTuple):
    """What a read that has begun may not miss."""

    position: int  # W as published when it began
    bits: int


class Doubt:
    """A standby went back in time: what is read may be as old, until W passes what the daemon had not let go then."""

    until: int | None = None  # position, None = not known yet


class ViolationError(AssertionError):
    """A promise was broken."""


class Oracle:
    """Knows what the daemon has published, and judges every hit by it."""

    def __init__(self, database: Database) -> None:
        self.database, self.kernel = database, database.kernel
        self.published = 0  # the highest W that a status has brought to the source
        self.over = False
        self._doubts: list[Doubt] = []
        self.counts: Counter[str] = Counter()
        self.history: deque[str] = deque(maxlen=REMEMBERED)

    def note(self, what: str, told: str = "") -> None:
        """Remember an event."""
        self.history.append(f"{self.kernel.now - STARTED:10.4f}  {what:<12} {told}")

    def publish(self, position: int, sent: int, confirmed: int) -> None:
        """Take note of a status: it acknowledges whole transactions that have been sent, and nothing else.

        What the slot has been confirmed up to anyhow says nothing: a new slot begins where the log ends.
        """
        if position <= confirmed:
            return
        if position > sent:
            raise self.broken(f"acknowledged {position:x}, but only {sent:x} was sent")
        for transaction in reversed(self.database.log[-50:]):
            if transaction.commit_lsn <= position < transaction.end_lsn:
                raise self.broken(f"acknowledged {position:x}, amid the commit of {transaction.told}")
        if position > self.published:
            self.published = position
            self.note("W", f"{position:x}")

    def rewind(self) -> None:
        """Take note that a standby shows an older state: the daemon hears of it in time."""
        doubt = Doubt()
        self._doubts.append(doubt)
        self.kernel.spawn(self._limit, doubt)

    def _limit(self, doubt: Doubt) -> None:
        self.kernel.sleep(NOTICED_WITHIN)
        doubt.until = self.database.wal_end

    def due(self, key: bytes) -> Due:
        """Begin a read."""
        return Due(self.published, self.database.due(key, self.published))

    def _in_doubt(self, due: Due) -> bool:
        return any(doubt.until is None or due.position < doubt.until for doubt in self._doubts)

    def judge(self, key: bytes, value: int, due: Due, where: str) -> None:
        """Look at a hit that a client believes."""
        self.counts["hits"] += 1
        if (missing := due.bits & ~value) and self._in_doubt(due):
            self.counts["rewound"] += 1
        elif missing:
            transaction = self.database.touched[key][(missing & -missing).bit_length() - 1]
            raise self.broken(
                f"{key.decode()} ({where}) is {value:b} without {missing:b}: {transaction.told}, which ends at "
                f"{transaction.end_lsn:x}, before W = {due.position:x} when the read began"
            )

    def broken(self, fault: str) -> ViolationError:
        """Return the error to raise."""
        self.note("VIOLATION", fault)
        return ViolationError(fault)
