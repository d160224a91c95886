"""What a store asks of a Redis node, over whatever performs the exchanges."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from leasecache.errors import ConfigError, NodeError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Token
from leasecache.metrics import NodeStats
from leasecache.stores import redis_guarded as guarded
from leasecache.stores import redis_leases as leases
from leasecache.stores.base import BatchReader, Outcome, Reader
from leasecache.stores.redis_leases import Conversation, Exchange, Replies
from leasecache.stores.redis_record import UNGUARDABLE
from leasecache.stores.trust import Trust

ShortWay = Callable[[bytes], bytes | None]
T = TypeVar("T")


class RedisCalls(ABC):
    """The calls of a node as conversations, each performed exchange by exchange."""

    name: str
    trust: Trust | None = None
    errors: NodeStats
    scattered = False  # whether the keys may be on several servers
    moves = False  # whether another server may be in its place while the former still answers: a service of Sentinels
    _run: str | None = None  # that was told last

    @abstractmethod
    def exchange(self, request: Exchange) -> Replies:
        """Send commands and return what was read, None each when no connection is old enough. Raises NodeError."""

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Answer:
        """Return the value, or the lease to load it, or who has it. Raises NodeError."""
        ask = Ask(key, lease_for, refresh_ahead, mark)
        if mark is None:
            return self._hold(leases.lease_get(ask))
        return self._hold(guarded.lease_get(ask, self._trust()))

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask, in order, with one round trip per 1,000 keys. Raises NodeError."""
        if all(ask.mark is None for ask in asks):
            return self._hold(leases.lease_get_many(asks))
        return self._hold(guarded.lease_get_many(asks, self._trust()))

    @abstractmethod
    def short_way(self, refresh_ahead: float, flags: int) -> ShortWay:
        """Return a look at a key that gives the value of a plain hit, and None when a lease-get is needed."""

    @abstractmethod
    def guarded_way(self, refresh_ahead: float, flags: int, mark: bytes) -> ShortWay:
        """Return the same for the function of `mark`, of which only a hit that its guard vouches for is one."""

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags.

        A plain hit is a GET; only when that brings something else the scripts are asked.
        """
        lease_get = self.lease_get
        get = self.short_way(refresh_ahead, flags) if mark is None else self.guarded_way(refresh_ahead, flags, mark)

        def read(key: bytes) -> bytes | Answer:
            body = get(key)
            return lease_get(key, lease_for, refresh_ahead, mark) if body is None else body

        return read

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader:
        """Return a lease-get of many keys that gives the values alone of plain hits with these client flags."""

        def read(keys: Sequence[bytes]) -> list[bytes | Answer | NodeError]:
            asks = [Ask(key, lease_for, refresh_ahead, mark) for key in keys]
            if mark is not None:
                return self._hold(guarded.read_many(asks, flags, self._trust()))
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
        if mark is None:
            return self._hold(leases.steal(key, token, lease_for))
        return self._hold(guarded.steal(Ask(key, lease_for, 0, mark), token, self._trust()))

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s.

        Returns once the server has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        self._hold(leases.invalidate(keys, stale_for, scattered=self.scattered))

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:
        """Invalidate as `invalidate` does; return the guard record as it stands afterwards, None = absent.

        One that is not of this run of the server is as good as absent. Raises NodeError; GuardError when another server
        is in the place of the one that `run` told of last, which may still answer and be believed.
        """
        self._refuse_scattered()
        return self._hold(guarded.invalidate_under(guard_key, keys, stale_for, self._run if self.moves else None))

    def run(self) -> str:
        """Return which run of the server this is; anew after a restart or a promotion. Raises NodeError."""
        self._refuse_scattered()
        self._run = self._hold(guarded.run())
        return self._run

    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching its lease; the answer does not tell whether it is stale.

        Raises NodeError. Redis counts it as a use of the key.
        """
        if mark is None:
            return self._hold(leases.look(key))
        return self._hold(guarded.look(key, mark, self._trust()))

    def _trust(self) -> Trust:
        """Return what this node is trusted by. Raises ConfigError when it cannot be."""
        self._refuse_scattered()
        assert self.trust is not None
        return self.trust

    def _refuse_scattered(self) -> None:
        if self.scattered:
            raise ConfigError(UNGUARDABLE)

    def _hold(self, conversation: Conversation[T]) -> T:
        """Perform the exchanges of a conversation; return what it comes to."""
        try:
            request = next(conversation)
            while True:
                request = conversation.send(self.exchange(request))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
