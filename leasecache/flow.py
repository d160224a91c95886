"""What happens to one call: decisions that may have to wait, written as generators.

A flow yields small requests (Get, Fill, Release, Load, Spawn, Sleep, Join) and is resumed with their results; a
driver performs them. A plain hit never enters a flow.
"""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from leasecache.codecs import Codec, DecodeError
from leasecache.errors import LeaseTimeout, NodeError
from leasecache.lease import Answer, Hit, Lease, Refused, Stale, Stored, Wait
from leasecache.policy import Policy
from leasecache.singleflight import Flight, Flights, Landed, Permits

POLL_FIRST, POLL_GROWTH, POLL_MOST = 0.001, 1.5, 0.05  # s, factor, s between two looks at somebody else's lease
AHEAD_ALWAYS = 2**31 - 1  # s: with this much refresh_ahead, any value may be refreshed
MISREADS = 3  # undecodable values dropped in one call before it loads without storing


@dataclass(frozen=True, slots=True)
class Entry:
    """A value with its provenance: state is "fresh", "stale", "loaded" or "uncached"; expires_in in s."""

    value: Any
    state: str
    expires_in: float | None


class LoadTime:
    """The decayed average of a function's load times in s: when a waiter looks first."""

    __slots__ = ("expected",)

    def __init__(self) -> None:
        self.expected = 0.0

    def observe(self, seconds: float) -> None:
        """Take one load into the average."""
        self.expected = seconds if not self.expected else 0.8 * self.expected + 0.2 * seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One call of one cached function."""

    name: str  # of the function, for messages
    key: bytes
    policy: Policy
    codec: Codec
    load: Callable[[], Any]
    load_time: LoadTime
    flights: Flights
    permits: Permits
    inline: bool = False  # a refresh must run in the winner: the loader takes arguments that are not in the key
    began: float = field(default_factory=time.monotonic)

    @property
    def wait_until(self) -> float:
        """When the call stops waiting for somebody else's lease, on the monotonic clock."""
        return self.began + self.policy.wait_for

    @property
    def last_until(self) -> float:
        """When the call stops waiting for anything but its own load."""
        return self.wait_until + self.policy.lease_for


@dataclass(frozen=True, slots=True)
class Get:
    """Send a lease-get; resumed with its answer, or the NodeError."""

    refresh_ahead: float | None = None  # s, None = the policy's


@dataclass(frozen=True, slots=True)
class Fill:
    """Send a lease-set; resumed with Stored or Refused."""

    lease: Lease
    flags: int
    body: bytes
    ttl: float  # s


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
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for a flight; resumed with what it brought, or None."""

    flight: Flight
    seconds: float


Request = Get | Fill | Release | Load | Spawn | Sleep | Join
Flow = Generator[Request, Any, Entry]
Reading = Generator[Request, Any, "Entry | None"]


def fetch(task: Task, answer: Answer | NodeError) -> Flow:
    """Turn the answer to a call's own lease-get into its value. Raises LeaseTimeout, and what the loader raises."""
    misreads = 0
    while misreads < MISREADS:
        entry: Entry | None
        if isinstance(answer, Lease):
            entry = yield from _won(task, answer)
        elif isinstance(answer, Hit):
            entry = yield from _hit(task, answer)
            misreads += 1
        elif isinstance(answer, (Stale, Wait)):
            entry = yield from _lost(task, answer)
        else:
            break  # the node is gone
        if entry is not None:
            return entry
        answer = yield Get()
    return (yield from load_unleased(task))


def refresh(task: Task, lease: Lease) -> Flow:
    """Load now and store under `lease`."""
    if lease.token is None:
        return (yield from load_unleased(task))
    return (yield from _load(task, lease, task.flights.begin(task.key, lease.token)))


def renew(task: Task, answer: Answer | NodeError) -> Flow:
    """Load now under a lease, after whoever is loading already: that load may have begun before this call."""
    pause = POLL_FIRST
    while not isinstance(answer, (Lease, NodeError)) and time.monotonic() < task.wait_until:
        yield Sleep(pause)
        answer = yield Get(AHEAD_ALWAYS)
        pause = min(pause * POLL_GROWTH, POLL_MOST)
    if isinstance(answer, Hit):  # whoever refreshes it may have failed; its CAS admits a store as a lease does
        answer = Lease(task.key, answer.token, answer.value, True, answer.flags, answer.expires_in)
    if isinstance(answer, Lease):
        return (yield from refresh(task, answer))
    return (yield from load_unleased(task))


def load_unleased(task: Task) -> Flow:
    """Load without storing, one caller per key and process at a time; the value serves those who began before it."""
    while True:
        flight, running, leads = task.permits.enter(task.key)
        if leads:
            return (yield from _lead(task, flight, running))
        landed = yield Join(flight, task.last_until - time.monotonic())
        entry = None if landed is None else _landed(task, landed)
        if entry is not None:
            return entry
        _check_time(task)


def _lead(task: Task, flight: Flight, running: Flight | None) -> Flow:
    landed = None
    try:
        while running is not None:
            yield Join(running, task.last_until - time.monotonic())
            _check_time(task)
            running = task.permits.promote(task.key, flight)
        value = yield Load()
        flags, body = _encode(task, value)
        landed = Landed(flags, body, False, None)
        return Entry(value, "uncached", None)
    finally:
        task.permits.leave(task.key, flight, landed)


def _hit(task: Task, hit: Hit) -> Reading:
    try:
        return Entry(task.codec.decode(hit.flags, hit.value), "fresh", hit.expires_in)
    except DecodeError:
        yield Release(Lease(task.key, hit.token))  # drops exactly this version of the item
        return None


def _won(task: Task, lease: Lease) -> Reading:
    if lease.token is None:
        return (yield from load_unleased(task))
    if lease.value is not None and (lease.fresh or task.policy.stale_for):
        try:
            value = task.codec.decode(lease.flags, lease.value)
        except DecodeError:
            pass
        else:
            yield Spawn(lease)
            return Entry(value, "fresh" if lease.fresh else "stale", lease.expires_in)
    return (yield from refresh(task, lease))


def _lost(task: Task, answer: Stale | Wait) -> Reading:
    out_of_time = time.monotonic() >= task.wait_until
    if task.policy.stale_for or (out_of_time and task.policy.on_wait_timeout == "stale"):
        stale = _stale(task, answer)
        if stale is not None:
            return stale
    if out_of_time:
        return (yield from _give_up(task))
    if answer.token is None:
        yield Sleep(POLL_MOST)
        return None
    flight, mine = task.flights.join_or_begin(task.key, answer.token)
    if mine:
        return (yield from _poll(task, flight))
    landed = yield Join(flight, task.wait_until - time.monotonic())
    return None if landed is None else _landed(task, landed)


def _stale(task: Task, answer: Stale | Wait) -> Entry | None:
    if isinstance(answer, Wait):
        return None
    try:
        return Entry(task.codec.decode(answer.flags, answer.value), "stale", answer.expires_in)
    except DecodeError:
        return None


def _give_up(task: Task) -> Flow:
    if task.policy.on_wait_timeout == "load":
        return (yield from load_unleased(task))
    raise _timeout(task, task.policy.wait_for)


def _poll(task: Task, flight: Flight) -> Reading:
    """Look again until the holder of the lease has stored, or somebody has voided it; others wait for this flight."""
    pause, growing = max(task.load_time.expected, POLL_FIRST), POLL_FIRST
    landed: Landed | None = None
    try:
        while (left := task.wait_until - time.monotonic()) > 0:
            yield Sleep(min(pause * random.uniform(0.8, 1.0), left))
            answer = yield Get()
            if isinstance(answer, Lease) and answer.token is not None and answer.value is None:
                flight.token = answer.token  # whoever joined before is served by a load that begins only now
                return (yield from _load(task, answer, flight))
            if not isinstance(answer, (Stale, Wait)):
                landed = _land(answer)
                return (yield from _settle(task, answer))
            flight.token = answer.token
            pause, growing = growing, min(growing * POLL_GROWTH, POLL_MOST)
        return None
    finally:
        task.flights.end(task.key, flight, landed)


def _land(answer: Answer | NodeError) -> Landed | None:
    return Landed(answer.flags, answer.value, True, answer.expires_in) if isinstance(answer, Hit) else None


def _settle(task: Task, answer: Answer | NodeError) -> Reading:
    if isinstance(answer, Hit):
        return (yield from _hit(task, answer))
    if isinstance(answer, Lease):
        return (yield from _won(task, answer))
    return (yield from load_unleased(task))


def _load(task: Task, lease: Lease, flight: Flight) -> Flow:
    """Load under the lease and store; the value answers the callers of `flight` even when the store is refused."""
    landed = None
    try:
        began = time.monotonic()
        try:
            value = yield Load()
            flags, body = _encode(task, value)
        except GeneratorExit:  # an abandoned flow may not ask for anything more; the lease runs out by itself
            raise
        except BaseException:
            yield Release(lease)
            raise
        task.load_time.observe(time.monotonic() - began)
        ttl = task.policy.ttl_of(value is None) * (1 - random.random() * task.policy.jitter)
        outcome: Stored | Refused = yield Fill(lease, flags, body, ttl)
        stored = isinstance(outcome, Stored)
        landed = Landed(flags, body, stored, ttl if stored else None)
        return Entry(value, "loaded" if stored else "uncached", landed.expires_in)
    finally:
        task.flights.end(task.key, flight, landed)


def _landed(task: Task, landed: Landed) -> Entry | None:
    try:
        value = task.codec.decode(landed.flags, landed.body)
    except DecodeError:
        return None
    return Entry(value, "fresh" if landed.cached else "uncached", landed.expires_in)


def _encode(task: Task, value: Any) -> tuple[int, bytes]:
    try:
        return task.codec.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{task.name} returned a {type(value).__name__} that cannot be cached: {error}") from error


def _check_time(task: Task) -> None:
    if time.monotonic() >= task.last_until:
        raise _timeout(task, task.policy.wait_for + task.policy.lease_for)


def _timeout(task: Task, seconds: float) -> LeaseTimeout:
    return LeaseTimeout(f"{task.name}: no value for {task.key.decode()} within {seconds:g} s")
