"""The guard record: one per cache node, by which clients know whether to believe what the node holds.

An invalidation daemon writes it and lets it run out when it no longer follows the database; clients read it with every
request for a guarded function. It names the generation that the node's guarded keys carry, and the rings and rules that
the daemon serves. Another generation than a request was made with, no record at all, or a ring or rule that is not in
it: the node's answers are not used.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from leasecache.keys import key_prefix
from leasecache.rules import Rule

RECORD_FLAGS = 1  # client flags of the record on memcached; a stub, whose owner is about to write it, has 0
NO_RUN = "-"  # of a server that forgets everything when it ends
LONGEST = 220  # bytes of a function's logical key; longer ones are of the low level, and never guarded
_VERSION = b"1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the daemon vouches for on one node."""

    generation: int  # 63 random bits, never used again
    tenure: int  # 63 random bits that each holder of the slot draws anew
    run: str = NO_RUN  # which run of the server the record was written to, for servers that keep data over a restart
    rings: frozenset[bytes]  # marks of the rings whose owners are invalidated
    rules: frozenset[bytes]  # marks of the functions whose rules are served

    def to_bytes(self) -> bytes:
        """Return what is stored under the guard key; equal records have equal bytes."""
        numbers = f"{self.generation:016x} {self.tenure:016x} {self.run}".encode()
        return b" ".join((_VERSION, numbers, b",".join(sorted(self.rings)), b",".join(sorted(self.rules))))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record | None":
        """Read a record; None when it is none, or one of a later version."""
        parts = data.split(b" ")
        if len(parts) != 6 or parts[0] != _VERSION:
            return None
        try:
            generation, tenure, run = int(parts[1], 16), int(parts[2], 16), parts[3].decode("ascii")
        except ValueError:
            return None
        rings, rules = (frozenset(part.split(b",")) - {b""} for part in parts[4:])
        return cls(generation=generation, tenure=tenure, run=run, rings=rings, rules=rules)


def guard_key(namespace: str | None) -> bytes:
    """Return the key of the guard record; no logical key begins with "!"."""
    return b"!guard:" + key_prefix(namespace)


def pulse_key(namespace: str | None, slot: str) -> bytes:
    """Return the key under which the daemon of a slot shows the others of the same caches that it lives."""
    return b"%b~%b" % (guard_key(namespace), slot.encode())


def wire_key(generation: int, key: bytes) -> bytes:
    """Return what a guarded key is called on its node: 17 bytes more than the logical key."""
    return b"%016x:%b" % (generation, key)


def ring_mark(names: Sequence[str], weights: Sequence[float] | None = None) -> bytes:
    """Return the mark of a ring: the same for the same nodes with the same weights, in whatever order."""
    shares = sorted(zip(names, map(float, weights or [1] * len(names)), strict=True))
    return _mark(shares)


def function_mark(rules: Iterable[Rule]) -> bytes:
    """Return the mark of all rules of one function; whatever changes the keys that a row touches changes it."""
    return _mark(sorted(json.dumps(_said(rule), sort_keys=True) for rule in rules))


def function_marks(rules: Iterable[Rule]) -> frozenset[bytes]:
    """Return the marks of all functions that have rules; a template belongs to one function."""
    by_template: dict[str, list[Rule]] = {}
    for rule in rules:
        by_template.setdefault(rule.template, []).append(rule)
    return frozenset(map(function_mark, by_template.values()))


def _said(rule: Rule) -> Mapping[str, object]:
    return {
        "template": rule.template,
        "kinds": dict(rule.kinds),
        "table": [rule.schema, rule.table],
        "fields": dict(rule.fields),
        "columns": sorted(rule.columns) if rule.columns is not None else None,
        "stale_for": float(rule.stale_for),
    }


def _mark(said: object) -> bytes:
    text = json.dumps(said, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest().encode()
