"""Guard records, written as the daemon writes them: conditionally, with a time to live."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from leasecache.guard import NO_RUN, RECORD_FLAGS, Record, function_marks, guard_key, ring_mark
from leasecache.lease import Ask, Hit, Lease, Stored, Token
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


class Guarded:
    """A guarded store of which everything is asked for one function, under the names of `Store`."""

    def __init__(self, store: Any, mark: bytes) -> None:
        self._store = store
        self._mark = mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0) -> Any:
        """Ask with the mark."""
        return self._store.lease_get(key, lease_for, refresh_ahead, self._mark)

    def lease_get_many(self, asks: Sequence[Ask]) -> Any:
        """Ask with the mark."""
        return self._store.lease_get_many([ask._replace(mark=self._mark) for ask in asks])

    def reader(self, lease_for: float, refresh_ahead: float, flags: int) -> Any:
        """Return a reader that asks with the mark."""
        return self._store.reader(lease_for, refresh_ahead, flags, self._mark)

    def batch_reader(self, lease_for: float, refresh_ahead: float, flags: int) -> Any:
        """Return a reader that asks with the mark."""
        return self._store.batch_reader(lease_for, refresh_ahead, flags, self._mark)

    def steal(self, key: bytes, token: Token, lease_for: float) -> Any:
        """Steal with the mark."""
        return self._store.steal(key, token, lease_for, self._mark)

    def look(self, key: bytes) -> Any:
        """Look with the mark."""
        return self._store.look(key, self._mark)


def new_generation() -> int:
    """Return a number that nobody has drawn before."""
    return secrets.randbits(63) | 1
