"""The guard record of one node: reading what stands there, deciding on the generation, writing it by compare-and-set.

Never an unconditional write: one that arrives late would revive old values. A node that is known to have been told
everything keeps its generation, or the one that somebody has given it since; whatever cannot be known gets a new one,
under which nothing has been stored yet.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from leasecache.errors import NodeError
from leasecache.guard import RECORD_FLAGS, Record
from leasecache.invalidation.journal import Standing
from leasecache.lease import Hit, Lease, Stale, Stored, Token, Wait

STUB_FOR = 10.0  # s that a node keeps the place of a record that is about to be written
ATTEMPTS = 5  # at a record that others write meanwhile
TENURES = 100  # that are remembered: conversations may come and go for months
RENEWALS = 4  # within the life of a record ...
RENEWED_AFTER = 15.0  # s at most, to notice soon that a node has lost it
FOREVER = 30 * 86_400.0  # s
SUCCESSOR_WAIT = 10.0  # s for which a predecessor may still believe that it holds the slot
CLOCK_SLACK = 1.1  # how much slower than ours a node's clock may run


@dataclass(frozen=True, kw_only=True)
class Charter:
    """What the records of one node say, and for how long."""

    key: bytes
    ttl: float  # s, 0 = until the node loses it
    rings: frozenset[bytes]
    rules: frozenset[bytes]
    pulse: bytes | None = None  # key under which this daemon shows the others of the same node that it lives
    others: tuple[bytes, ...] = ()  # the keys of those others: without one of them nothing is vouched for

    @property
    def marks(self) -> frozenset[bytes]:
        """Everything that clients may find in the record; what a later charter lacks is not told any more."""
        return self.rings | self.rules | {self.key}


class _Standing(NamedTuple):
    """What stands under the guard key, and the token that a write has to present."""

    token: Token | None
    record: Record | None


class Written(NamedTuple):
    """A record that stands, and what it was written under."""

    generation: int
    tenure: int
    charter: Charter
    run: str


class Keeper:
    """Keeps one node's record; `write` runs in the node's thread, all else in the daemon's."""

    def __init__(self, node: Any, charter: Charter) -> None:
        self.generation: int | None = None  # what guarded keys carry; None = not known yet
        self.sent_at = 0.0  # monotonic s when a record was last sent, by us or by a predecessor
        self.haunted_until = 0.0  # monotonic s until which W stays: a server that was in this one's place is believed
        self.key = charter.key
        self._node = node
        self._charter = charter
        self._life = charter.ttl or FOREVER
        self._tenure = 0
        self._tenures: deque[int] = deque(maxlen=TENURES)  # those of this process
        self.run: str | None = None  # of the server that the generation was written to
        self._renew_at = 0.0  # monotonic s

    def begin(self, tenure: int, now: float, *, known: bool) -> None:
        """Begin a tenure of the slot; `known`: nobody else has moved the slot since what we know was true."""
        if not known:
            self.generation = None  # before the tenure, as a `write` may be about to read both
        self._tenure = tenure
        self._tenures.append(tenure)
        self._renew_at = now
        self.sent_at = max(self.sent_at, now + SUCCESSOR_WAIT)  # another daemon may have had the slot till now

    def resume(self, standing: Standing | None) -> None:
        """Go on with the generation that an earlier process has left, unless it vouched for more than we do."""
        if standing is not None and standing.marks <= self._charter.marks:
            self.generation, self.run = standing.generation, standing.run

    def is_due(self, now: float) -> bool:
        """Whether the record is to be written now."""
        return now >= self._renew_at

    @property
    def charter(self) -> Charter:
        """What the record says; a new one is written at once, and what it leaves out costs the generation."""
        return self._charter

    @charter.setter
    def charter(self, charter: Charter) -> None:
        if not self._charter.marks <= charter.marks:
            self.generation = None  # before the charter, as a `write` may be about to read both
        self._charter = charter
        self.miss()

    @property
    def due_at(self) -> float:
        """When (monotonic s) the record is to be written again."""
        return self._renew_at

    @property
    def expired_at(self) -> float:
        """When (monotonic s) each record has surely run out on the node that we sent, or others thanks to our pulse."""
        lives = 4 if self._charter.others else 2
        return self.sent_at + lives * CLOCK_SLACK * self._life

    def miss(self) -> None:
        """Note that the record is gone, or not as it should be."""
        self._renew_at = 0.0

    def wrote(self, written: Written, now: float) -> None:
        """Note that a record stands; one of an earlier tenure or charter is to be written again at once."""
        current = written.tenure == self._tenure and written.charter is self._charter
        if current or self.generation is not None:  # else what became of this one cannot be known any more
            self.generation, self.run = written.generation, written.run
        self._renew_at = now + min(self._life / RENEWALS, RENEWED_AFTER) if current else now

    def write(self, until: float, *, new: bool = False) -> Written | None:
        """Write the record, with a `new` generation if need be; None when the slot may not be ours any more.

        That is so from `until` (monotonic s) on: a process may have been stopped between any two lines. Whoever has
        the slot then writes a record, too, and its CAS is another one than we have read. Raises NodeError.
        """
        charter, tenure, known = self._charter, self._tenure, self.generation
        run = self._node.run()
        self._beware(run)
        self._show(charter, tenure, until)
        for _ in range(ATTEMPTS):
            token, found = self._read(charter.key)
            rules = self._vouched_rules(
                charter
            )  # behind the token: who has less to vouch for writes a record after that
            generation = fresh_number() if new or known is None else self._choose(known, found, run, charter)
            record = Record(generation=generation, tenure=tenure, run=run, rings=charter.rings, rules=rules)
            if time.monotonic() >= until:
                return None
            if self._write(charter.key, token, record.to_bytes()):
                return Written(generation, tenure, charter, run)
        raise NodeError(f"{self._node.name}: the guard record changed under {ATTEMPTS} attempts to write it")

    def _beware(self, run: str) -> None:
        """Take note of a server that is in another's place, which may go on answering under the record it has."""
        if getattr(self._node, "moves", False) and run != self.run:
            self.haunted_until = max(self.haunted_until, self.expired_at)

    def _show(self, charter: Charter, tenure: int, until: float) -> None:
        """Show the others that we live, and what we vouch for."""
        if charter.pulse is not None:
            token = self._read(charter.pulse).token
            if time.monotonic() < until:
                self._write(charter.pulse, token, b"%016x %b" % (tenure, b",".join(sorted(charter.rules))))

    def _vouched_rules(self, charter: Charter) -> frozenset[bytes]:
        """Return the functions that all of us vouch for: none without one of us."""
        rules = charter.rules
        for other in charter.others:
            found = self._node.look(other)
            rules &= frozenset() if found is None else frozenset(found.value.partition(b" ")[2].split(b","))
        return rules

    def _write(self, key: bytes, token: Token | None, body: bytes) -> bool:
        self.sent_at = max(self.sent_at, time.monotonic())
        return isinstance(self._node.lease_set(Lease(key, token), RECORD_FLAGS, body, self._life), Stored)

    def _read(self, key: bytes) -> _Standing:
        answer = self._node.lease_get(key, STUB_FOR)
        if isinstance(answer, (Wait, Stale)) and answer.token is not None:  # who began to write it has not finished
            answer = self._node.steal(key, answer.token, STUB_FOR)
        value = answer.value if isinstance(answer, (Hit, Lease)) else None
        return _Standing(answer.token, None if value is None else Record.from_bytes(value))

    def _choose(self, known: int, found: Record | None, run: str, charter: Charter) -> int:
        if (self.run or run) != run:
            return fresh_number()
        if found is None:
            return known
        # What was served once and is not now would be believed again, with all it has missed, if it came back.
        kept = found.run == run and found.rings <= charter.rings and found.rules <= charter.rules
        return found.generation if kept and (found.generation == known or self.owns(found)) else fresh_number()

    def owns(self, record: Record) -> bool:
        """Tell whether a generation that is not ours stands for a cleared cache; `clear` keeps the tenure.

        One that another holder of the slot has written may be older than what we have told the node. Daemons that
        vouch together take each other's.
        """
        return record.tenure in self._tenures or bool(self._charter.others)


def fresh_number(draw: Callable[[int], int] = secrets.randbits) -> int:
    """Return a random number of 63 bits that is not 0."""
    return draw(63) or 1
