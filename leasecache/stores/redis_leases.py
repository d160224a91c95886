"""The calls of a Redis store as conversations: generators that yield exchanges and are resumed with the replies.

A node performs them over its connections, synchronously (`redis.py`) or not (`aredis.py`). `scattered` says that the
keys may be on several nodes of a cluster: then each command names one key, or a key and its lease.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Refused, Token
from leasecache.stores import redis_wire as wire
from leasecache.stores.base import Outcome
from leasecache.stores.pool import NUMBERS
from leasecache.stores.redis_wire import Command

CHUNK = 1000  # keys in one exchange: Redis serves nobody else meanwhile

Item = TypeVar("Item")
T = TypeVar("T")


class Exchange(NamedTuple):
    """Commands to send in one go; with `before`, only over a connection established no later than that epoch."""

    commands: Sequence[Command]
    before: int | None = None


class Replies(NamedTuple):
    """What was read from each reply, or its ResponseError; the epochs of the exchange and of its connection."""

    values: Sequence[Any]
    epoch: int
    born: int


Conversation = Generator[Exchange, "Replies | None", T]  # None: every connection from before is gone


def lease_get(ask: Ask) -> Conversation[Answer]:
    """Return the value, or the lease to load it, or who has it."""
    [answer] = yield from lease_get_many([ask])
    return answer


def lease_get_many(asks: Sequence[Ask]) -> Conversation[list[Answer]]:
    """Return an answer per ask, in order."""
    answers: list[Answer] = []
    for chunk in _chunks(asks):
        tokens = [_number() for _ in chunk]
        replies = yield Exchange([wire.lease_get(ask, token) for ask, token in zip(chunk, tokens, strict=True)])
        answers += _answers(chunk, tokens, _given(replies))
    return answers


def read_many(asks: Sequence[Ask], flags: int, *, scattered: bool) -> Conversation[list[bytes | Answer]]:
    """Return the value of each plain hit with these client flags, of everything else the answer to its lease-get."""
    prefix, found = wire.prefix_of(flags), []
    for chunk in _chunks(asks):
        replies = yield Exchange([wire.get_many(keys) for keys in _groups([ask.key for ask in chunk], scattered)])
        now, values = time.time(), wire.joined(_given(replies).values)
        found += [wire.plain(value, prefix, ask.refresh_ahead, now) for value, ask in zip(values, chunk, strict=True)]
    others = iter((yield from lease_get_many([ask for ask, body in zip(asks, found, strict=True) if body is None])))
    return [next(others) if body is None else body for body in found]


def lease_set(fill: Fill) -> Conversation[Outcome]:
    """Store under the lease, over a connection older than it."""
    token = fill.lease.token
    if token is None:
        return Refused("the server had no room for a lease, or holds somebody else's value")
    if not _fits(fill):
        yield from release(fill.lease)
        return Refused(f"larger than the {wire.LARGEST} bytes that a value in Redis can have")
    replies = yield Exchange([wire.lease_set(fill, token, _number())], token.epoch)
    if replies is None:
        return Refused("every connection from before the lease is gone, the server may have restarted")
    return wire.outcome(replies.values[0])


def lease_set_many(fills: Sequence[Fill]) -> Conversation[list[Outcome]]:
    """Store under each lease, together over a connection older than all of them while there is one."""
    outcomes: list[Outcome] = []
    for chunk in _chunks(fills):
        held = [fill.lease.token for fill in chunk if fill.lease.token is not None and _fits(fill)]
        replies = None
        if len(held) == len(chunk):
            commands = [wire.lease_set(fill, token, _number()) for fill, token in zip(chunk, held, strict=True)]
            replies = yield Exchange(commands, min(token.epoch for token in held))
        if replies is not None:
            outcomes += [wire.outcome(value) for value in replies.values]
            continue
        for fill in chunk:
            outcomes.append((yield from lease_set(fill)))
    return outcomes


def release(lease: Lease) -> Conversation[None]:
    """Give the lease back, so that the next reader wins at once; a fresh value is refreshed by its expiry."""
    if lease.token is not None and not lease.fresh:
        replies = yield Exchange([wire.release(lease, lease.token)], lease.token.epoch)
        if replies is not None:
            wire.done(replies.values)


def steal(key: bytes, held: Token, lease_for: float) -> Conversation[Answer]:
    """Void the lease that the token names, unless it is gone already, and answer as a lease-get then does."""
    ask, token = Ask(key, lease_for), _number()
    replies = yield Exchange([wire.steal(ask, held, token)], held.epoch)
    if replies is None:
        return (yield from lease_get(ask))
    return _answers([ask], [token], replies)[0]


def invalidate(keys: Sequence[bytes], stale_for: float, *, scattered: bool) -> Conversation[None]:
    """Void leases, then drop the values or leave them stale for at most `stale_for` s.

    Leases go first: out of memory or half done, no load that began before can store. A lease won in between is
    younger than the change that is being announced.
    """
    for chunk in _chunks(keys):
        commands = []
        for group in _groups(chunk, scattered):
            commands.append(wire.delete([wire.lease_key(key) for key in group]))
            commands.append(wire.mark_stale(group, int(stale_for)) if stale_for >= 1 else wire.delete(group))
        replies = yield Exchange(commands)
        wire.done(_given(replies).values)


def look(key: bytes) -> Conversation[Hit | None]:
    """Return the value without touching its lease; Redis counts it as a use."""
    replies = yield Exchange([wire.get(key), wire.time_left(key)])
    value, left = _given(replies).values
    return wire.seen(value, left)


def figures() -> Conversation[dict[str, Any]]:
    """Return the server's own figures."""
    replies = yield Exchange([wire.figures()])
    wire.done(_given(replies).values)
    found: dict[str, Any] = _given(replies).values[0]
    return found


def _answers(asks: Sequence[Ask], tokens: Sequence[bytes], replies: Replies) -> list[Answer]:
    values, epoch, born = replies
    return [wire.answer(*each, epoch, born) for each in zip(asks, values, tokens, strict=True)]


def _given(replies: Replies | None) -> Replies:
    assert replies is not None  # None answers only an exchange that names an epoch
    return replies


def _fits(fill: Fill) -> bool:
    return len(fill.body) <= wire.LARGEST


def _number() -> bytes:
    """Return a token or version: random, because a number from a counter or a log may come again."""
    return NUMBERS.draw().to_bytes(8, "big")


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def _groups(keys: Sequence[bytes], scattered: bool) -> Sequence[Sequence[bytes]]:
    return [[key] for key in keys] if scattered else [keys]
