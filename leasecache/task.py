"""One call of one cached function, and the requests by which its flow asks a driver for what may have to wait."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from leasecache.codecs import Codec
from leasecache.errors import GuardError
from leasecache.holders import Holders
from leasecache.lease import Answer, Ask, Fill, Lease, Token
from leasecache.loadtime import LoadTime
from leasecache.metrics import FunctionStats
from leasecache.policy import Policy
from leasecache.singleflight import Flight, Flights, Permits


@dataclass(frozen=True, slots=True)
class Entry:
    """A value with its provenance: state is "fresh", "stale", "loaded" or "uncached"; expires_in in s."""

    value: Any
    state: str
    expires_in: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What all calls of one function share."""

    name: str  # of the function, for messages
    policy: Policy
    codec: Codec
    load_time: LoadTime
    stats: FunctionStats
    mark: bytes | None = None  # of a guarded function: what the guard record of a node must name
    unguarded: Callable[[GuardError], None] = lambda error: None  # told of each call whose node is not vouched for
    inline: bool = False  # a refresh must run in the winner: the loader takes arguments that are not in the key


@contextlib.contextmanager
def measured(profile: Profile) -> Iterator[None]:
    """Count one load, of however many values, and what it took."""
    began = time.monotonic()
    try:
        yield
    except Exception:
        profile.stats.failed += 1
        raise
    seconds = time.monotonic() - began
    profile.load_time.observe(seconds)
    profile.stats.loaded.observe(seconds)


class Local:
    """What the callers of this process know of each other, for one store: the tokens of two stores can be alike."""

    def __init__(self, *, in_threads: bool = False) -> None:
        self._in_threads = in_threads  # a call is one thread's; else a thread runs many, as tasks
        self.flights = Flights()
        self.permits = Permits()
        self.holders = Holders()

    def is_own(self, flight: Flight, key: bytes) -> bool:
        """Tell whether the loader of the flight, which is one of `key`, is what asks: it must not wait for itself."""
        if self._in_threads:
            return flight.thread == threading.get_ident()
        return any(hand.local is self and key in hand.keys for hand in _IN_HAND.get())

    @contextlib.contextmanager
    def loading(self, keys: Collection[bytes]) -> Iterator[None]:
        """Note in this task, and in those that it starts, that `keys` are its to load; for loaders that are tasks."""
        hand = _Hand(self, keys)
        token = _IN_HAND.set((*_IN_HAND.get(), hand))
        try:
            yield
        finally:
            hand.keys = ()  # tasks that outlive the load ask as any other
            _IN_HAND.reset(token)


class _Hand:
    """The keys that one run of a loader is loading."""

    __slots__ = ("keys", "local")

    def __init__(self, local: Local, keys: Collection[bytes]) -> None:
        self.local = local
        self.keys = keys


_IN_HAND: ContextVar[tuple[_Hand, ...]] = ContextVar("leasecache_in_hand", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One call."""

    key: bytes
    profile: Profile
    local: Local
    load: Callable[[], Any]
    began: float = field(default_factory=time.monotonic)

    @property
    def policy(self) -> Policy:
        """The policy of the function."""
        return self.profile.policy

    @property
    def wait_until(self) -> float:
        """When the call stops waiting for somebody else's lease, on the monotonic clock."""
        return self.began + self.policy.wait_for

    @property
    def last_until(self) -> float:
        """When the call stops waiting for anything but its own load."""
        return self.wait_until + self.policy.lease_for

    def ask(self, refresh_ahead: float | None = None, lease_for: float | None = None) -> Ask:
        """Return the lease-get of this call; both in s, None = the policy's."""
        ahead = self.policy.refresh_ahead if refresh_ahead is None else refresh_ahead
        return Ask(self.key, self.policy.lease_for if lease_for is None else lease_for, ahead, self.profile.mark)


class Get(NamedTuple):
    """Send a lease-get; resumed with its answer, or the NodeError."""

    refresh_ahead: float | None = None  # s, None = the policy's
    lease_for: float | None = None  # s, None = the policy's


@dataclass(slots=True, eq=False)
class Look:
    """Send lease-gets, with those of everybody who waits, until an answer no longer names `token`.

    Resumed with that answer or NodeError; at `until` with the last answer, or None when there was none.
    """

    ask: Ask
    token: Token
    until: float  # monotonic s
    due: float  # monotonic s: when to look first, and then next
    again: float  # monotonic s: when to look for the second time
    pause: float = 0.0  # s between the last two looks
    answer: Answer | Exception | None = None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Steal:
    """Void a lease whose holder has had its time; resumed with what a lease-get then answers, or the NodeError."""

    token: Token
    lease_for: float  # s


@dataclass(frozen=True, slots=True)
class Release:
    """Give a lease back; resumed with None even when the node is gone."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Load:
    """Run the loader; resumed with its value, or its exception is thrown in."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Refresh under this lease in the background."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for a flight until a monotonic time; resumed with what it brought, or None."""

    flight: Flight
    until: float


Request = Get | Look | Steal | Fill | Release | Load | Spawn | Join
