"""The calls of a Redis store as conversations: generators that yield exchanges and are resumed with the replies.

A node performs them over its connections, synchronously (`redis.py`) or not (`aredis.py`). `scattered` says that the
keys may be on several nodes of a cluster: then each command names one key, or a key and its lease.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from leasecache.errors import NodeError
from leasecache.lease import Answer, Ask, Fill, Hit, Lease, Refused, Token
from leasecache.stores import redis_wire as wire
from leasecache.stores.base import Outcome
from leasecache.stores.pool import NUMBERS
from leasecache.stores.redis_wire import Command

CHUNK = 1000  # keys in one exchange: Redis serves nobody else meanwhile

Item = TypeVar("Item")
T = TypeVar("T")


class Exchange(NamedTuple):
    """Commands to send in one go; with `before`, only over a connection established no later than that epoch.

    With `run` only to a server that is in this run, "" = whichever, which the replies then tell.
    """

    commands: Sequence[Command]
    before: int | None = None
    run: str | None = None


class Reply(NamedTuple):
    """What was read, or a ResponseError or NodeError; the epochs of the exchange and of its connection; who replied."""

    value: Any
    epoch: int
    born: int
    node: str
    run: str = ""  # of the server, "" = not known


Replies = Sequence[Reply | None]  # None: every connection from before is gone
Conversation = Generator[Exchange, Replies, T]


def lease_get(ask: Ask) -> Conversation[Answer]:
    """Return the value, or the lease to load it, or who has it."""
    [found] = yield from lease_get_many([ask])
    if isinstance(found, NodeError):
        raise found
    return found


def lease_get_many(asks: Sequence[Ask]) -> Conversation[list[Answer | NodeError]]:
    """Return an answer per ask, in order, or why there is none."""
    answers: list[Answer | NodeError] = []
    for chunk in chunks(asks):
        tokens = [number() for _ in chunk]
        replies = yield Exchange([wire.lease_get(ask, token) for ask, token in zip(chunk, tokens, strict=True)])
        answers += [answer(*each) for each in zip(chunk, replies, tokens, strict=True)]
    return answers


def read_many(asks: Sequence[Ask], flags: int, *, scattered: bool) -> Conversation[list[bytes | Answer | NodeError]]:
    """Return the value of each plain hit with these client flags, of everything else the answer to its lease-get."""
    prefix, found = wire.prefix_of(flags), []
    for chunk in chunks(asks):
        groups = _groups([ask.key for ask in chunk], scattered)
        replies = yield Exchange([wire.get_many(keys) for keys in groups])
        now, values = time.time(), [value for each in zip(replies, groups, strict=True) for value in _spread(*each)]
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
    [reply] = yield Exchange([wire.lease_set(fill, token, number())], token.epoch)
    if reply is None:
        return Refused("every connection from before the lease is gone, the server may have restarted")
    outcome = _outcome(reply)
    if isinstance(outcome, NodeError):
        raise outcome
    return outcome


def lease_set_many(fills: Sequence[Fill]) -> Conversation[list[Outcome | NodeError]]:
    """Store under each lease, together over a connection older than all of them while there is one."""
    outcomes: list[Outcome | NodeError] = []
    for chunk in chunks(fills):
        held = [fill.lease.token for fill in chunk if fill.lease.token is not None and _fits(fill)]
        replies: Replies = [None] * len(chunk)
        if len(held) == len(chunk):
            commands = [wire.lease_set(fill, token, number()) for fill, token in zip(chunk, held, strict=True)]
            replies = yield Exchange(commands, min(token.epoch for token in held))
        for fill, reply in zip(chunk, replies, strict=True):
            outcomes.append(_outcome(reply) if reply is not None else (yield from lease_set(fill)))
    return outcomes


def release(lease: Lease) -> Conversation[None]:
    """Give the lease back, so that the next reader wins at once; a fresh value is refreshed by its expiry."""
    yield from release_many([lease])


def release_many(held: Sequence[Lease]) -> Conversation[None]:
    """Give leases back, together over a connection older than all of them."""
    for chunk in chunks([(lease, lease.token) for lease in held if lease.token is not None and not lease.fresh]):
        commands = [wire.release(lease, token) for lease, token in chunk]
        done((yield Exchange(commands, min(token.epoch for _, token in chunk))))


def steal(key: bytes, held: Token, lease_for: float) -> Conversation[Answer]:
    """Void the lease that the token names, unless it is gone already, and answer as a lease-get then does."""
    ask, token = Ask(key, lease_for), number()
    [reply] = yield Exchange([wire.steal(ask, held, token)], held.epoch)
    found = (yield from lease_get(ask)) if reply is None else answer(ask, reply, token)
    if isinstance(found, NodeError):
        raise found
    return found


def invalidate(keys: Sequence[bytes], stale_for: float, *, scattered: bool) -> Conversation[None]:
    """Void leases, then drop the values or leave them stale for at most `stale_for` s.

    Leases go first: out of memory or half done, no load that began before can store. A lease won in between is
    younger than the change that is being announced.
    """
    for chunk in chunks(keys):
        done((yield Exchange([each for group in _groups(chunk, scattered) for each in voiding(group, stale_for)])))


def voiding(keys: Sequence[bytes], stale_for: float) -> list[Command]:
    """Return the commands that invalidate keys of one node; none for none."""
    if not keys:
        return []
    dropped = wire.mark_stale(keys, int(stale_for)) if stale_for >= 1 else wire.delete(keys)
    return [wire.delete([wire.lease_key(key) for key in keys]), dropped]


def look(key: bytes) -> Conversation[Hit | None]:
    """Return the value without touching its lease; Redis counts it as a use."""
    value, left = yield Exchange([wire.get(key), wire.time_left(key)])
    seen = _read(wire.seen, value, left)
    if isinstance(seen, NodeError):
        raise seen
    return seen


def figures() -> Conversation[dict[str, Any]]:
    """Return the server's own figures."""
    [found] = done((yield Exchange([wire.figures()])))
    return dict(found)


def answer(ask: Ask, reply: Reply | None, token: bytes, generation: int = 0) -> Answer | NodeError:
    """Return what the reply to a lease-get comes to, or why it does not; `generation` is that of the key."""
    assert reply is not None  # only what names an epoch may find no connection
    return _read(lambda value: wire.answer(ask, value, token, reply.epoch, reply.born, generation), reply)


def _outcome(reply: Reply) -> Outcome | NodeError:
    return _read(wire.outcome, reply)


def _read(read: Callable[..., T], *replies: Reply | None) -> T | NodeError:
    """Return what the replies come to, or why they do not, with the name of who said so."""
    given = [reply for reply in replies if reply is not None]
    for reply in given:
        if isinstance(reply.value, NodeError):
            return reply.value
    try:
        return read(*(reply.value for reply in given))
    except NodeError as error:
        return type(error)(f"redis {given[0].node}: {error}")


def done(replies: Replies) -> list[Any]:
    """Return the values of replies. Raises NodeError when a command was refused."""
    values = [_read(wire.done, reply) for reply in replies if reply is not None]
    for value in values:
        if isinstance(value, NodeError):
            raise value
    return values


def _spread(reply: Reply | None, keys: Sequence[bytes]) -> Sequence[Any]:
    """Return the values that one reply has for these keys; what was refused is asked again, key by key."""
    return reply.value if reply is not None and type(reply.value) is list else [None] * len(keys)


def _fits(fill: Fill) -> bool:
    return len(fill.body) <= wire.LARGEST


def number() -> bytes:
    """Return a token or version: random, because a number from a counter or a log may come again."""
    return NUMBERS.draw().to_bytes(8, "big")


def chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Cut into parts of which each is one exchange."""
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def _groups(keys: Sequence[bytes], scattered: bool) -> Sequence[Sequence[bytes]]:
    return [[key] for key in keys] if scattered else [keys]
