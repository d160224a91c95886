"""Whether one node may be believed about guarded keys: its guard record as it was last read, and the verdict on it.

What was read last only says under which generation to ask. Whether the answer is used is decided by the record that
came with it, so no two threads need to agree, and nothing here is ever too old to be right.
"""

import logging
import secrets
from collections.abc import Iterable
from dataclasses import replace

from leasecache._accel import RecordState, TrustState
from leasecache.errors import ConfigError, GuardError
from leasecache.guard import LONGEST, NO_RUN, Record, guard_key, wire_key
from leasecache.lease import Answer, Hit, Lease

log = logging.getLogger("leasecache")

ATTEMPTS = 3  # requests that another generation may cut across, before a call does without the node


class Known(RecordState):
    """A guard record, and what requests under its generation begin with. Never changed."""

    __slots__ = ("generation", "raw", "record")

    def __init__(self, key: bytes, ring: bytes, raw: bytes, record: Record) -> None:
        """`key` is the record's on its node, `ring` the mark of the ring by which this client finds nodes."""
        self.raw = raw  # as stored
        self.record = record
        self.generation = record.generation
        self.marks = record.rules if ring in record.rings else frozenset()  # of the functions that may be believed
        self.prefix = b"%016x:" % record.generation  # of keys, as `guard.wire_key` puts it
        self.head = b"mg %b v\r\nmg %b" % (key, self.prefix)  # of a request to memcached
        self.reply = b"VA %d\r\n%b\r\n" % (len(raw), raw)  # what it begins its answer with, if nothing has changed


class Trust(TrustState):
    """The guard record of one node, as this client sees it."""

    __slots__ = ("_asked", "key", "node", "ring")

    known: Known | None  # as read last; None = not yet, or there was none

    def __init__(self, namespace: str | None, ring: bytes, node: str) -> None:
        """`ring` is the mark of the ring by which this client finds nodes, `node` the name for messages."""
        self.key = guard_key(namespace)
        self.ring = ring
        self.node = node
        self._asked = False
        self.known = None

    @property
    def state(self) -> str:
        """The record when it was last read: "fresh", "absent", "foreign" (it is about another ring), or "unread"."""
        if self.known is None:
            return "absent" if self._asked else "unread"
        return "fresh" if self.ring in self.known.record.rings else "foreign"

    def usable(self, mark: bytes) -> Known | None:
        """Return the record under whose generation to ask for a function; None = ask for the record alone first."""
        known = self.known
        return known if known is not None and mark in known.marks else None

    def read(self, raw: bytes | None, run: str = NO_RUN) -> Known | None:
        """Take note of the record that a server has just sent, None = absent; None when it says nothing to us.

        `run` tells which run of the server has sent it: a record that outlived the run it was written to is void.
        """
        known = self.known
        if known is None or known.raw != raw or known.record.run != run:
            record = None if raw is None else Record.from_bytes(raw)
            known = Known(self.key, self.ring, raw, record) if raw and record and record.run == run else None
            self._tell(known)
            self.known, self._asked = known, True
        return known

    def judge(self, raw: bytes | None, mark: bytes, run: str = NO_RUN) -> Known:
        """Return the record just read, as `read` does, when it vouches for the function of `mark`. Raises GuardError.

        Answers may be used if the keys that they are about carry its generation.
        """
        known = self.read(raw, run)
        if known is None:
            raise self.absent()
        if mark in known.marks:
            return known
        if self.ring in known.record.rings:
            raise GuardError(f"{self.node}: the daemon does not have this function's rules", "rule")
        raise GuardError(
            f"{self.node}: the daemon serves other nodes or weights than those of this cache's URL", "ring"
        )

    def under(self, generation: int, keys: Iterable[bytes]) -> list[bytes]:
        """Return what these keys are called under a generation; no guarded function has one that would be too long."""
        return [wire_key(generation, key) for key in keys if len(key) <= LONGEST]

    def generation(self, raw: bytes | None) -> int:
        """Return the generation of a record just read, whatever it vouches for. Raises GuardError."""
        record = None if raw is None else Record.from_bytes(raw)
        if record is None:
            raise self.absent()
        return record.generation

    def bumped(self, found: Answer) -> tuple[Lease, bytes, float]:
        """Return how to store the record that was found, under a generation of which nothing is stored.

        It is not to live longer than it would have: whoever renews it may be gone. Raises GuardError.
        """
        left = found.expires_in if isinstance(found, Hit) else None
        record = Record.from_bytes(found.value) if isinstance(found, Hit) else None
        if record is None or left is None or left < 2:
            raise self.absent()
        renewed = replace(record, generation=secrets.randbelow(2**63 - 1) + 1)
        return Lease(self.key, found.token), renewed.to_bytes(), left - 1  # the server's clock may tick in between

    def _tell(self, known: Known | None) -> None:
        if known is None and (self.known is not None or not self._asked):
            log.warning("%s: no guard record; guarded functions load without the cache until there is one", self.node)
        elif known is not None and self.known is None and self._asked:
            log.info("%s: it has a guard record again", self.node)

    def absent(self) -> GuardError:
        """Return the error of a node without a guard record."""
        return GuardError(f"{self.node}: no guard record, so nothing there is believed; is the daemon running?")

    def unsettled(self) -> GuardError:
        """Return the error of a call that has met another generation each time it asked."""
        return GuardError(f"{self.node}: the generation of its guard record has changed {ATTEMPTS} times during a call")


def unclearable() -> ConfigError:
    """Return the error of a store whose values nothing can make unreachable at once."""
    return ConfigError(
        "clear() gives every node a new generation, and without guard='daemon' nodes have none; use invalidate() or "
        "another namespace, or flush the servers"
    )
