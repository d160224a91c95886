"""Guard records, written as the daemon writes them: conditionally, with a time to live."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from leasecache.guard import NO_RUN, RECORD_FLAGS, Record, function_marks, guard_key, ring_mark
from leasecache.lease import Hit, Lease, Stored
from leasecache.rules import Rule
from leasecache.stores.base import LeaseNode

TTL = 60.0  # s


class Voucher:
    """Who vouches for one node."""

    def __init__(
        self, node: LeaseNode, names: Sequence[str] | None = None, namespace: str | None = None, run: str = NO_RUN
    ) -> None:
        """`names` are those of all nodes of the ring; default this one's."""
        self.node = node
        self.key = guard_key(namespace)
        self.rings = frozenset([ring_mark(names or [node.name])])
        self.rules: frozenset[bytes] = frozenset()
        self.run = run
        self.generation = new_generation()
        self.tenure = new_generation()

    def vouch(self, rules: Iterable[Rule] = (), marks: Iterable[bytes] = (), ttl: float = TTL) -> Record:
        """Write the record, adding the functions of these rules, or with these marks, to those that it names."""
        self.rules |= function_marks(rules) | {*marks}
        return self.write(ttl)

    def bump(self) -> int:
        """Write another generation; return it."""
        self.generation = new_generation()
        self.write()
        return self.generation

    def write(self, ttl: float = TTL, **changes: Any) -> Record:
        """Write the record, for once with `changes`."""
        fields: dict[str, Any] = {"generation": self.generation, "tenure": self.tenure, "run": self.run}
        record = Record(**(fields | {"rings": self.rings, "rules": self.rules} | changes))
        self.put(record.to_bytes(), ttl)
        return record

    def put(self, body: bytes, ttl: float = TTL) -> None:
        """Write any bytes in the place of the record."""
        found = self.node.lease_get(self.key, ttl)
        assert isinstance(found, (Hit, Lease)), found
        lease = Lease(self.key, found.token)
        assert self.node.lease_set(lease, RECORD_FLAGS, body, ttl) == Stored()

    def withdraw(self) -> None:
        """Let the record go, as when it runs out."""
        self.node.invalidate([self.key])


def new_generation() -> int:
    """Return a number that nobody has drawn before."""
    return secrets.randbits(63) | 1
