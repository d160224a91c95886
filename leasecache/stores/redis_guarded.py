"""The guarded calls of a Redis store as conversations: every request reads the guard record, and is judged by it.

Hits are an MGET of the record and the values, which Redis does in one step. Scripts get the digest of the record under
which they are sent, and do nothing where another one is. So nothing is won or served under a record that is not there.
Requests go to the run of the server that the record names: what a server has brought back is of another run.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from leasecache.errors import GuardError, NodeError
from leasecache.guard import Record
from leasecache.lease import Answer, Ask, Hit, Token
from leasecache.stores import redis_leases as leases
from leasecache.stores import redis_record
from leasecache.stores import redis_wire as wire
from leasecache.stores.redis_leases import Conversation, Exchange, Reply
from leasecache.stores.trust import ATTEMPTS, Known, Trust


def lease_get(ask: Ask, trust: Trust) -> Conversation[Answer]:
    """Return the value, or the lease to load it, or who has it; raise GuardError where nothing may be believed."""
    [answer] = yield from lease_get_many([ask], trust)
    if isinstance(answer, NodeError):
        raise answer
    return answer


def lease_get_many(asks: Sequence[Ask], trust: Trust) -> Conversation[list[Answer | NodeError]]:
    """Return an answer per ask, in order, or why there is none; asks without a mark are not guarded."""
    found: list[Any] = [None] * len(asks)
    plain = [i for i, ask in enumerate(asks) if ask.mark is None]
    if plain:
        for i, answer in zip(plain, (yield from leases.lease_get_many([asks[i] for i in plain])), strict=True):
            found[i] = answer
    left = [i for i, ask in enumerate(asks) if ask.mark is not None]
    for _ in range(ATTEMPTS):
        known = yield from _settle(asks, left, found, trust)
        left = [i for i in left if found[i] is None]
        if not left:
            return found
        left = yield from _ask(asks, left, found, trust, known)
    for i in left:
        found[i] = trust.unsettled()
    return found


def read_many(asks: Sequence[Ask], flags: int, trust: Trust) -> Conversation[list[bytes | Answer | NodeError]]:
    """Return the value of each plain hit with these client flags, of everything else the answer to its lease-get."""
    prefix = wire.prefix_of(flags)
    found: list[bytes | None] = []
    for chunk in leases.chunks(asks):
        known = trust.known
        if known is None or any(ask.mark not in known.marks for ask in chunk):
            found += [None] * len(chunk)
            continue
        keys = [trust.key, *[known.prefix + ask.key for ask in chunk]]
        [reply] = yield Exchange([wire.get_many(keys)], run=known.record.run)
        values: Sequence[bytes | None] = _vouched(reply, known) or [None] * len(chunk)
        now = time.time()
        found += [wire.plain(value, prefix, ask.refresh_ahead, now) for value, ask in zip(values, chunk, strict=True)]
    rest = [ask for ask, body in zip(asks, found, strict=True) if body is None]
    others = iter((yield from lease_get_many(rest, trust)))
    return [next(others) if body is None else body for body in found]


def steal(ask: Ask, held: Token, trust: Trust) -> Conversation[Answer]:
    """Void the lease that the token names, unless it is gone already, and answer as a lease-get then does.

    A lease of another generation is in nobody's way.
    """
    known = trust.usable(ask.mark or b"")
    if known is not None:
        token = leases.number()
        steal = wire.steal(ask, held, token, _under(trust, known))
        [reply] = yield Exchange([steal], held.epoch, known.record.run)
        if reply is not None and not isinstance(reply.value, wire.Other | GuardError):
            answer: Answer = _raised(leases.answer(ask, reply, token, known.generation))
            return answer
    return (yield from lease_get(ask, trust))


def look(key: bytes, mark: bytes, trust: Trust) -> Conversation[Hit | None]:
    """Return the value without touching its lease; Redis counts it as a use."""
    for _ in range(ATTEMPTS):
        known = trust.usable(mark) or trust.judge(*(yield from _record(trust, mark)))
        there = known.prefix + key
        reply, left = yield Exchange([wire.get_many([trust.key, there]), wire.time_left(there)], run=known.record.run)
        values = _vouched(reply, known)
        if values is not None:
            assert left is not None
            return wire.seen(values[0], _raised(left.value))
        trust.read(None)
    raise trust.unsettled()


def invalidate_under(
    guard: bytes, keys: Sequence[bytes], stale_for: float, meant: str | None = None
) -> Conversation[bytes | None]:
    """Invalidate, then return the guard record, read in the last exchange behind the last key.

    None, as if there were none, when it is not of the run of the server that has acknowledged all the keys. Raises
    GuardError when that is another run than is `meant`.
    """
    runs, raw = set(), None
    for chunk in [*leases.chunks(keys)] or [()]:
        commands = [*leases.voiding(chunk, stale_for), redis_record.question(), wire.get_many([guard])]
        *done, told, record_read = yield Exchange(commands)
        leases.done(done)
        runs.add(_run_of(told))
        [value] = leases.done([record_read])[0]
        raw = redis_record.of(value)
    if meant is not None and runs != {meant}:
        raise GuardError("another server is in the place of the one that the guard record was written to")
    record = None if raw is None else Record.from_bytes(raw)
    return raw if record is not None and runs == {record.run} else None


def run() -> Conversation[str]:
    """Return which run of the server this is."""
    [told] = yield Exchange([redis_record.question()])
    return _run_of(told)


def _settle(asks: Sequence[Ask], left: Sequence[int], found: list[Any], trust: Trust) -> Conversation[Known | None]:
    """Return the record that vouches for all that is left, or is about to; note the error of those it does not.

    What was read last is asked under. Where it does not vouch for everything, the record alone is read first.
    """
    known = trust.known
    if known is not None and all(asks[i].mark in known.marks for i in left):
        return known
    try:
        raw, _, run = yield from _record(trust, b"")
    except NodeError as error:
        for i in left:
            found[i] = error
        return None
    for i in left:
        try:
            known = trust.judge(raw, asks[i].mark or b"", run)
        except GuardError as error:
            found[i] = error
    return known


def _ask(
    asks: Sequence[Ask], left: Sequence[int], found: list[Any], trust: Trust, known: Known | None
) -> Conversation[list[int]]:
    """Ask for what is left under a record; return what is left because another one was there."""
    assert known is not None
    under, again = _under(trust, known), []
    for chunk in leases.chunks(left):
        tokens = [leases.number() for _ in chunk]
        commands = [wire.lease_get(asks[i], token, under) for i, token in zip(chunk, tokens, strict=True)]
        replies = yield Exchange(commands, run=known.record.run)
        for i, token, reply in zip(chunk, tokens, replies, strict=True):
            assert reply is not None
            if isinstance(reply.value, wire.Other | GuardError):
                trust.read(reply.value.raw if isinstance(reply.value, wire.Other) else None, reply.run)
                again.append(i)
            else:
                found[i] = leases.answer(asks[i], reply, token, known.generation)
    return again


def _record(trust: Trust, mark: bytes) -> Conversation[tuple[bytes | None, bytes, str]]:
    """Read the record alone; return it, the mark, and the run of the server that has sent it. Raises NodeError.

    Of a record of another run the server is asked once more which it is in: that may have changed since.
    """
    run = ""
    while True:
        [reply] = yield Exchange([wire.get_many([trust.key])], run=run)
        assert reply is not None
        [value] = leases.done([reply])[0]
        raw = redis_record.of(value)
        record = None if raw is None else Record.from_bytes(raw)
        if run or record is None or record.run == reply.run:
            return raw, mark, reply.run
        run = record.run


def _run_of(told: Reply | None) -> str:
    if told is not None and isinstance(told.value, ResponseError):
        raise redis_record.refusal(told.value)
    return str(leases.done([told])[0])


def _vouched(reply: Reply | None, known: Known) -> list[bytes | None] | None:
    """Return the values that came behind the record, None when it was another one. Raises NodeError."""
    assert reply is not None
    if isinstance(reply.value, GuardError):
        return None
    record, *values = leases.done([reply])[0]
    return values if redis_record.same(record, known.raw) else None


def _under(trust: Trust, known: Known) -> wire.Under:
    digest = hashlib.sha1(known.raw, usedforsecurity=False).hexdigest().encode()
    return wire.Under(trust.key, digest, known.prefix)


def _raised(answer: Any) -> Any:
    if isinstance(answer, NodeError):
        raise answer
    return answer
