"""What the flows and the daemon ask of a store. Small on purpose: the null store is its whole length.

The stores answer alike (`tests/property/test_stores_agree.py`), but for what happens when time or memory runs out:

- The lease on a stale value, or on one that is refreshed early, ends after lease_for on Redis and with the value on
  memcached and in memory. There the value takes its lease along when it expires or is evicted; on Redis the lease
  stays, and its holder can still store.
- memcached counts in whole seconds. Out of memory it drops the key of a lease-set, Redis keeps a stale value.
- A look counts as a use of the key on Redis; a value that somebody else has written there is never replaced by a
  lease-set, and goes at an invalidation.

A `mark` makes a request a guarded one: it begins with a read of the node's guard record, and its answer is used only if
that vouches for the function of the mark (`stores/trust.py`); otherwise GuardError. Keys, here and in leases, are
logical ones; a token says under which generation its key stands on the node. In this process nothing is guarded.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from leasecache.errors import NodeError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Refused, Stored, Token
from leasecache.stores.trust import Trust


class Node(Protocol):
    """One cache server, as the invalidation daemon sees it."""

    name: str  # "host:port" or the path of a Unix socket; shown to operators

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void outstanding leases on `keys`, drop the values or leave them stale for at most `stale_for` s.

        Returns once the node has acknowledged every key. Raises NodeError when it has not; repeating is safe. The keys
        are those on the node.
        """
        ...

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:
        """Invalidate like `invalidate`; return the guard record as it stands afterwards, None = absent.

        The record is read after every key has been acknowledged. Raises NodeError.
        """
        ...

    def run(self) -> str:
        """Return which run of the server this is, `guard.NO_RUN` if it forgets everything when it ends.

        Raises NodeError.
        """
        ...


Outcome = Stored | Refused
Reader = Callable[[bytes], bytes | Answer]
BatchReader = Callable[[Sequence[bytes]], Sequence[bytes | Answer | NodeError]]


class LeaseNode(Node, Protocol):
    """One cache server with leases. Expected outcomes are values; NodeError means that the node did not do it."""

    trust: Trust | None  # in its guard record; None = nothing is guarded

    def lease_get(
        self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None
    ) -> Answer: ...
    def lease_get_many(self, asks: Sequence[Ask]) -> Sequence[Answer | NodeError]: ...
    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader: ...
    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader: ...
    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome: ...
    def lease_set_many(self, fills: Sequence[Fill]) -> Sequence[Outcome | NodeError]: ...
    def release(self, lease: Lease) -> None: ...
    def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer: ...
    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Store(Protocol):
    """All nodes behind one URL. Expected outcomes are values; NodeError means that a node did not do it."""

    namespace: str | None
    guarded: bool  # an invalidation daemon vouches for its nodes
    mark: bytes  # of its ring, as guard records name it

    @property
    def nodes(self) -> Sequence[Node]: ...
    def node_for(self, key: bytes) -> Node: ...
    def lease_get(
        self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None
    ) -> Answer: ...
    def lease_get_many(self, asks: Sequence[Ask]) -> Sequence[Answer | NodeError]:
        """Return an answer per ask, in order, with one pipeline per node; the error of its node where that failed."""
        ...

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags."""
        ...

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader:
        """Return a `lease_get_many` of keys that gives the values alone of plain hits with these client flags."""
        ...

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome: ...
    def lease_set_many(self, fills: Sequence[Fill]) -> Sequence[Outcome | NodeError]:
        """Store under each lease, with one pipeline per node; the error of its node where that failed."""
        ...

    def release(self, lease: Lease) -> None: ...
    def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names, unless it is gone already, and return what a lease-get then answers."""
        ...

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0, *, plain: bool = False) -> None:
        """Invalidate on each owner, if it is guarded under its generation, too. Raises NodeError; repeating is safe.

        `plain` keys are those of functions without a guard, which stand under no generation.
        """
        ...

    def clear(self) -> None:
        """Forget every value: every guarded node gets a new generation. Raises NodeError, ConfigError if none is."""
        ...

    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None: ...
    def stats(self) -> Mapping[str, dict[str, Any]]:
        """Return each node's own figures. Raises NodeError."""
        ...

    def close(self) -> None: ...


AsyncReader = Callable[[bytes], Awaitable[bytes | Answer]]
AsyncBatchReader = Callable[[Sequence[bytes]], Awaitable[Sequence[bytes | Answer | NodeError]]]


class AsyncNode(Protocol):
    """The asynchronous twin of `Node`."""

    name: str

    async def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void leases and values as `Node.invalidate` does. Raises NodeError."""
        ...

    async def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:
        """Invalidate, then read the guard record, as `Node.invalidate_under` does. Raises NodeError."""
        ...


class AsyncLeaseNode(AsyncNode, Protocol):
    """The asynchronous twin of `LeaseNode`; what `reader` returns sends when called, and is to be awaited at once."""

    trust: Trust | None

    async def lease_get(
        self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None
    ) -> Answer: ...
    async def lease_get_many(self, asks: Sequence[Ask]) -> Sequence[Answer | NodeError]: ...
    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> AsyncReader: ...
    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> AsyncBatchReader: ...
    async def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome: ...
    async def lease_set_many(self, fills: Sequence[Fill]) -> Sequence[Outcome | NodeError]: ...
    async def release(self, lease: Lease) -> None: ...
    async def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer: ...
    async def look(self, key: bytes, mark: bytes | None = None) -> Hit | None: ...
    async def stats(self) -> dict[str, Any]: ...
    async def aclose(self) -> None: ...


class AsyncStore(Protocol):
    """The asynchronous twin of `Store`: what does I/O is awaited, and answers alike."""

    namespace: str | None
    guarded: bool

    @property
    def nodes(self) -> Sequence[AsyncNode]: ...
    def node_for(self, key: bytes) -> AsyncNode: ...
    async def lease_get(
        self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None
    ) -> Answer: ...
    async def lease_get_many(self, asks: Sequence[Ask]) -> Sequence[Answer | NodeError]: ...
    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> AsyncReader: ...
    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> AsyncBatchReader: ...
    async def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome: ...
    async def lease_set_many(self, fills: Sequence[Fill]) -> Sequence[Outcome | NodeError]: ...
    async def release(self, lease: Lease) -> None: ...
    async def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer: ...
    async def invalidate(self, keys: Sequence[bytes], stale_for: float = 0, *, plain: bool = False) -> None: ...
    async def clear(self) -> None: ...
    async def look(self, key: bytes, mark: bytes | None = None) -> Hit | None: ...
    async def stats(self) -> Mapping[str, dict[str, Any]]: ...
    async def aclose(self) -> None: ...
