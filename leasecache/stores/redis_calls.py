"""What a store asks of a Redis node, over whatever performs the exchanges."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from leasecache.errors import NodeError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Token
from leasecache.metrics import NodeStats
from leasecache.stores import redis_leases as leases
from leasecache.stores.base import BatchReader, Outcome, Reader
from leasecache.stores.redis_leases import Conversation, Exchange, Replies

ShortWay = Callable[[bytes], bytes | None]
T = TypeVar("T")


class RedisCalls(ABC):
    """The calls of a node as conversations, each performed exchange by exchange."""

    name: str
    errors: NodeStats
    scattered = False  # whether the keys may be on several servers

    @abstractmethod
    def exchange(self, request: Exchange) -> Replies:
        """Send commands and return what was read, None each when no connection is old enough. Raises NodeError."""

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Answer:
        """Return the value, or the lease to load it, or who has it. Raises NodeError."""
        return self._hold(leases.lease_get(Ask(key, lease_for, refresh_ahead)))

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask, in order, with one round trip per 1,000 keys. Raises NodeError."""
        return self._hold(leases.lease_get_many(asks))

    @abstractmethod
    def short_way(self, refresh_ahead: float, flags: int) -> ShortWay:
        """Return a look at a key that gives the value of a plain hit, and None when a lease-get is needed."""

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags.

        A plain hit is a GET; only when that brings something else the scripts are asked.
        """
        get, lease_get = self.short_way(refresh_ahead, flags), self.lease_get

        def read(key: bytes) -> bytes | Answer:
            body = get(key)
            return lease_get(key, lease_for, refresh_ahead) if body is None else body

        return read

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader:
        """Return a lease-get of many keys that gives the values alone of plain hits with these client flags."""

        def read(keys: Sequence[bytes]) -> list[bytes | Answer | NodeError]:
            asks = [Ask(key, lease_for, refresh_ahead) for key in keys]
            return self._hold(leases.read_many(asks, flags, scattered=self.scattered))

        return read

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under the lease, over a connection older than it. Raises NodeError."""
        return self._hold(leases.lease_set(Fill(lease, flags, body, ttl)))

    def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome | NodeError]:
        """Store under each lease. Raises NodeError."""
        return self._hold(leases.lease_set_many(fills))

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next reader wins at once. Raises NodeError."""
        self._hold(leases.release(lease))

    def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names, unless it is gone, and answer as a lease-get then does. Raises NodeError.

        Of many who steal one token one gets a lease: the server compares the tokens.
        """
        return self._hold(leases.steal(key, token, lease_for))

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s.

        Returns once the server has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        self._hold(leases.invalidate(keys, stale_for, scattered=self.scattered))

    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching its lease; the answer does not tell whether it is stale.

        Raises NodeError. Redis counts it as a use of the key.
        """
        return self._hold(leases.look(key))

    def _hold(self, conversation: Conversation[T]) -> T:
        """Perform the exchanges of a conversation; return what it comes to."""
        try:
            request = next(conversation)
            while True:
                request = conversation.send(self.exchange(request))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
