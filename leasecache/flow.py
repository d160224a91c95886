"""What happens to one call: decisions that may have to wait, written as generators.

A flow yields small requests (`leasecache.task`) and is resumed with their results; a driver performs them. A plain
hit never enters a flow.
"""

import random
import time
from collections.abc import Generator
from typing import Any

from leasecache.codecs import UNCACHEABLE, DecodeError
from leasecache.errors import GuardError, LeaseTimeout, NodeError
from leasecache.lease import Answer, Fill, Hit, Lease, Refused, Stale, Stored, Token, Wait
from leasecache.singleflight import Flight, Landed
from leasecache.task import Entry, Get, Join, Load, Look, Release, Request, Spawn, Steal, Task

POLL_FIRST = 0.001  # s between the first two looks at somebody else's lease; `schedule` lets it grow
AHEAD_ALWAYS = 2**31 - 1  # s: with this much refresh_ahead, any value may be refreshed
MISREADS = 3  # undecodable values dropped in one call before it loads without storing

Flow = Generator[Request, Any, Entry]
Reading = Generator[Request, Any, "Entry | None"]
Answering = Generator[Request, Any, "Answer | NodeError"]


def look_up(task: Task) -> Flow:
    """Send a lease-get and turn its answer into the call's value."""
    answer = yield Get()
    return (yield from fetch(task, answer))


def fetch(task: Task, answer: Answer | NodeError) -> Flow:
    """Turn the answer to a call's own lease-get into its value. Raises LeaseTimeout, and what the loader raises."""
    _count(task, answer)
    asked, misreads = answer, 0
    while misreads < MISREADS and not _marked(answer):
        entry: Entry | None
        if isinstance(answer, Lease):
            entry = yield from _won(task, answer)
        elif isinstance(answer, Hit):
            entry = yield from _hit(task, answer)
            misreads += 1
            if answer is asked:
                task.profile.stats.hits += entry is not None
                task.profile.stats.misses += entry is None
        elif isinstance(answer, (Stale, Wait)):
            entry = yield from _lost(task, answer)
        else:
            break  # the node is gone, or nobody vouches for it
        if entry is not None:
            return entry
        answer = yield Get()
    return (yield from load_unleased(task))


def refresh(task: Task, lease: Lease) -> Flow:
    """Load now and store under `lease`."""
    if lease.token is None:
        return (yield from load_unleased(task))
    return (yield from _load(task, lease, task.local.flights.begin(task.key, lease.token)))


def renew(task: Task) -> Flow:
    """Load now under a lease, after whoever is loading already: that load may have begun before this call."""
    answer: Answer | NodeError = yield Get(AHEAD_ALWAYS)
    if isinstance(answer, Lease):
        answer = yield from _long_enough(task, answer, AHEAD_ALWAYS)
    while isinstance(answer, (Hit, Stale, Wait)) and time.monotonic() < task.wait_until:
        answer = (yield _look(task, answer, task.wait_until, 0.0, AHEAD_ALWAYS)) or answer
    if isinstance(answer, Lease) and answer.token is not None:
        task.profile.stats.won += 1
    if isinstance(answer, Hit):  # whoever refreshes it may have failed; its CAS admits a store as a lease does
        answer = Lease(task.key, answer.token, answer.value, True, answer.flags, answer.expires_in)
    if isinstance(answer, Lease):
        return (yield from refresh(task, answer))
    return (yield from load_unleased(task))


def load_unleased(task: Task) -> Flow:
    """Load without storing, one caller per key and process at a time; the value serves those who began before it."""
    while True:
        flight, running, leads = task.local.permits.enter(task.key)
        if running is not None and task.local.is_own(running, task.key):
            if leads:
                task.local.permits.leave(task.key, flight, None)
            return (yield from _load_within(task))
        if leads:
            return (yield from _lead(task, flight, running))
        landed = yield Join(flight, task.last_until)
        entry = None if landed is None else _landed(task, landed)
        if entry is not None:
            return entry
        _check_time(task)


def _lead(task: Task, flight: Flight, running: Flight | None) -> Flow:
    landed = None
    try:
        while running is not None:
            yield Join(running, task.last_until)
            _check_time(task)
            running = task.local.permits.promote(task.key, flight)
        task.profile.stats.unleased += 1
        value = yield Load()
        flags, body = _encode(task, value)
        landed = Landed(flags, body, False, None)
        return Entry(value, "uncached", None)
    finally:
        task.local.permits.leave(task.key, flight, landed)


def _load_within(task: Task) -> Flow:
    """Load for a loader that asks for its own key, or for one that its batch has yet to load."""
    task.profile.stats.unleased += 1
    return Entry((yield Load()), "uncached", None)


def _count(task: Task, answer: Answer | NodeError) -> None:
    """Count what the call's own lease-get found; a hit is counted when it has been read."""
    stats = task.profile.stats
    if isinstance(answer, GuardError):
        task.profile.unguarded(answer)
    if isinstance(answer, Hit) and not _marked(answer):
        return
    value = None if isinstance(answer, NodeError) or _marked(answer) else getattr(answer, "value", None)
    if value is None:
        stats.misses += 1
    elif isinstance(answer, Lease) and answer.fresh:
        stats.hits += 1
    elif task.policy.stale_for:
        stats.stale += 1
    else:
        stats.misses += 1


def _marked(answer: Answer | NodeError) -> bool:
    """Tell whether the key holds the mark of a value too large to store: nobody shall wait for it."""
    return isinstance(answer, (Hit, Stale)) and answer.flags == UNCACHEABLE


def _hit(task: Task, hit: Hit) -> Reading:
    try:
        return Entry(task.profile.codec.decode(hit.flags, hit.value), "fresh", hit.expires_in)
    except DecodeError:
        task.profile.stats.misread += 1
        yield Release(Lease(task.key, hit.token))  # drops exactly this version of the item
        return None


def _won(task: Task, lease: Lease) -> Reading:
    if lease.token is None:
        return (yield from load_unleased(task))
    answer = yield from _long_enough(task, lease)
    if answer is not lease:
        return (yield from _won(task, answer)) if isinstance(answer, Lease) else None
    task.profile.stats.won += 1
    entry = _in_hand(task, lease)
    if entry is None:
        return (yield from refresh(task, lease))
    yield Spawn(lease)
    return entry


def _long_enough(task: Task, lease: Lease, refresh_ahead: float | None = None) -> Answering:
    """Exchange a lease like the one that has run out under a load of this process; returns what the key has then."""
    if lease.token is None or lease.fresh or not _is_too_short(task, lease.token):
        return lease  # a fresh value admits a store whatever becomes of its lease
    yield Release(lease)
    answer: Answer | NodeError = yield Get(refresh_ahead, _grant(task))
    if isinstance(answer, Lease) and answer.token is not None:
        _deadline(task, answer, answer.token)  # known from now on, so it is not taken for too short
    return answer


def _in_hand(task: Task, lease: Lease) -> Entry | None:
    """Return the value that came with a lease, if it may be served while its successor is loaded."""
    if lease.value is None or lease.flags == UNCACHEABLE or not (lease.fresh or task.policy.stale_for):
        return None
    return _decoded(task, lease.flags, lease.value, "fresh" if lease.fresh else "stale", lease.expires_in)


def _lost(task: Task, answer: Stale | Wait) -> Reading:
    out_of_time = time.monotonic() >= task.wait_until
    if task.policy.stale_for or (out_of_time and task.policy.on_wait_timeout == "stale"):
        stale = _stale(task, answer)
        if stale is not None:
            return (yield from _serve_stale(task, answer, stale))
    if out_of_time:
        return (yield from _give_up(task))
    if answer.token is None:  # nothing to join or to look for: ask again
        return None
    flight, mine = task.local.flights.join_or_begin(task.key, answer.token)
    if mine:
        return (yield from _poll(task, flight, answer))
    if task.local.is_own(flight, task.key):
        return (yield from _load_within(task))
    began = time.monotonic()
    landed = yield Join(flight, task.wait_until)
    task.profile.stats.waited.observe(time.monotonic() - began)
    return None if landed is None else _landed(task, landed)


def _serve_stale(task: Task, answer: Stale | Wait, stale: Entry) -> Flow:
    """Serve it; and when its refresh has taken too long, take that over: nothing else ends a stale item's lease."""
    if answer.token is None or time.monotonic() < _deadline(task, answer, answer.token):
        return stale
    stolen = yield from _steal(task, answer.token)
    if isinstance(stolen, Lease) and stolen.token is not None:
        task.profile.stats.won += 1
        yield Spawn(stolen)
    return stale


def _stale(task: Task, answer: Stale | Wait) -> Entry | None:
    if isinstance(answer, Wait):
        return None
    return _decoded(task, answer.flags, answer.value, "stale", answer.expires_in)


def _give_up(task: Task) -> Flow:
    if task.policy.on_wait_timeout == "load":
        return (yield from load_unleased(task))
    raise _timeout(task, task.policy.wait_for)


def _poll(task: Task, flight: Flight, answer: Stale | Wait) -> Reading:
    """Look again until the holder of the lease has stored, or somebody has voided it; others wait for this flight."""
    landed: Landed | None = None
    try:
        settled = yield from _outlast(task, flight, answer)
        if isinstance(settled, Lease) and settled.token is not None and settled.value is None:
            flight.token = settled.token  # whoever joined before is served by a load that begins only now
            task.profile.stats.won += 1
            return (yield from _load(task, settled, flight))
        landed = _land(settled)
    finally:
        task.local.flights.end(task.key, flight, landed)
    return (yield from _settle(task, settled))  # the others need not wait for what this caller does now


def _outlast(task: Task, flight: Flight, answer: Answer | NodeError) -> Generator[Request, Any, Any]:
    """Wait while somebody else has a lease, whichever; steal it when its holder has had its time.

    Returns the answer that ends the wait, or None at the end of the call's time.
    """
    began = time.monotonic()
    expected = task.profile.load_time.expected
    try:
        while isinstance(answer, (Stale, Wait)) and answer.token is not None:
            flight.token = answer.token
            deadline = _deadline(task, answer, answer.token)
            looked = yield _look(task, answer, min(deadline, task.wait_until), expected)
            expected = 0.0
            if looked is not None and not _names(looked, answer.token):
                answer = looked
            elif time.monotonic() >= task.wait_until:
                return None
            elif time.monotonic() >= deadline:
                answer = yield from _steal(task, flight.token)
        return answer
    finally:
        task.profile.stats.waited.observe(time.monotonic() - began)


def _look(
    task: Task, answer: Hit | Stale | Wait, until: float, expected: float, refresh_ahead: float | None = None
) -> Look:
    """Ask for looks at a lease: first halfway through the expected load, then at its end, then ever more rarely.

    When the holder began is unknown, so half of the time it will be done at the first look.
    """
    assert answer.token is not None
    half = max(expected / 2, POLL_FIRST)
    due = time.monotonic() + half
    again = due + (half if expected else POLL_FIRST)
    return Look(task.ask(refresh_ahead, _grant(task)), answer.token, until, due, again)


def _names(answer: Any, token: Token) -> bool:
    """Tell whether somebody still holds the lease `token`."""
    return isinstance(answer, (Stale, Wait)) and answer.token is not None and answer.token.cas == token.cas


def _deadline(task: Task, answer: Stale | Wait | Lease, token: Token) -> float:
    policy, now = task.policy, time.monotonic()
    patience = task.profile.load_time.patience(policy.lease_for)
    left = None if isinstance(answer, Wait) else answer.expires_in
    goes = None if left is None else now + left
    return task.local.holders.deadline(task.key, token, patience, policy.lease_for, now, goes)


def _is_too_short(task: Task, token: Token) -> bool:
    return task.local.holders.is_too_short(task.key, token, task.policy.lease_for, time.monotonic())


def _grant(task: Task) -> float:
    return task.local.holders.grant(task.key, task.policy.lease_for)


def _steal(task: Task, token: Token) -> Answering:
    answer: Answer | NodeError = yield Steal(token, _grant(task))
    if isinstance(answer, Lease) and answer.token is not None:
        task.profile.stats.stolen += 1
        _deadline(task, answer, answer.token)  # this process holds it now, since now
    return answer


def _land(answer: Any) -> Landed | None:
    if not isinstance(answer, Hit) or _marked(answer):
        return None
    return Landed(answer.flags, answer.value, True, answer.expires_in)


def _settle(task: Task, answer: Answer | NodeError | None) -> Reading:
    if answer is None:
        return None
    if isinstance(answer, Hit) and not _marked(answer):
        task.local.holders.drop(task.key)
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
        ttl = task.policy.ttl_of(value is None) * (1 - random.random() * task.policy.jitter)
        outcome: Stored | Refused = yield Fill(lease, flags, body, ttl)
        stored = isinstance(outcome, Stored)
        _note(task, lease, stored, began)
        landed = Landed(flags, body, stored, ttl if stored else None)
        return Entry(value, "loaded" if stored else "uncached", landed.expires_in)
    finally:
        task.local.flights.end(task.key, flight, landed)


def _note(task: Task, lease: Lease, stored: bool, began: float) -> None:
    if stored:
        task.local.holders.drop(task.key)
        return
    task.profile.stats.refused += 1
    if lease.token is not None:
        now = time.monotonic()
        task.local.holders.outlived(task.key, lease.token, now - began, task.policy.lease_for, now)


def _landed(task: Task, landed: Landed) -> Entry | None:
    state = "fresh" if landed.cached else "uncached"
    return _decoded(task, landed.flags, landed.body, state, landed.expires_in)


def _decoded(task: Task, flags: int, body: bytes, state: str, expires_in: float | None) -> Entry | None:
    try:
        return Entry(task.profile.codec.decode(flags, body), state, expires_in)
    except DecodeError:
        return None


def _encode(task: Task, value: Any) -> tuple[int, bytes]:
    try:
        return task.profile.codec.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        name = task.profile.name
        raise TypeError(f"{name} returned a {type(value).__name__} that cannot be cached: {error}") from error


def _check_time(task: Task) -> None:
    if time.monotonic() >= task.last_until:
        raise _timeout(task, task.policy.wait_for + task.policy.lease_for)


def _timeout(task: Task, seconds: float) -> LeaseTimeout:
    return LeaseTimeout(f"{task.profile.name}: no value for {task.key.decode()} within {seconds:g} s")
