"""Leases in Redis without I/O: commands as bytes, replies as answers; `redis_scripts.py` tells the layout."""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import ResponseError

from leasecache.errors import NodeError, ProtocolError
from leasecache.guard import wire_key
from leasecache.lease import Answer, Ask, Decision, Fill, Hit, Lease, Refused, Stale, Stored, Token, Wait
from leasecache.stores import redis_scripts as scripts
from leasecache.stores.redis_scripts import LEASE_GET, LEASE_SET, MARK_STALE, RELEASE, STEAL, TEXTS, Script

FRESH, STALE = b"F\xff", b"S\xff"
PREFIX = Struct(">2sI8s")  # mark, client flags, version
HEADER = Struct(">2sI8sQ")  # and the expiry in ms since 1970
LARGEST = 2**29 - HEADER.size  # bytes of a body: a Redis string holds 512 MiB
POLL = 0.001  # s before a waiter looks again for the first time


class Unfit(NodeError):
    """The server cannot hold leases, or does not let us in; the message tells what to change."""


class Command(NamedTuple):
    """One command; `read` checks the shape of its reply and makes something of it. Raises ProtocolError."""

    key: bytes  # decides which node of a cluster gets it
    parts: tuple[bytes, ...]
    read: Callable[[Any], Any]

    @property
    def packed(self) -> bytes:
        """The command as the protocol has it."""
        return pack(self.parts)

    @property
    def spelled_out(self) -> bytes:
        """The same with its script's text instead of the digest, for a server that has lost its scripts."""
        return pack((b"EVAL", TEXTS[self.parts[1]], *self.parts[2:]))


class Found(NamedTuple):
    """The checked reply to a lease-get."""

    decision: Decision
    left: float | None  # s, None = no expiry
    body: bytes = b""
    flags: int = 0
    version: bytes = b""
    holder: bytes = b""


class Under(NamedTuple):
    """The guard record that must be there for a script to do anything, and what keys begin with under it."""

    key: bytes
    digest: bytes  # SHA-1, hexadecimal
    prefix: bytes


class Other(NamedTuple):
    """Another guard record than a script was sent under, None = there is none; the script did nothing."""

    raw: bytes | None


def pack(parts: Sequence[bytes]) -> bytes:
    """Return a command of the Redis serialization protocol: an array of bulk strings."""
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


SLOTS = ((b"CLUSTER", b"SLOTS"),)


def lease_key(key: bytes) -> bytes:
    """Return where the lease on `key` is: in the same slot of a cluster, for rendered keys hold no braces."""
    return b"{%b}:l" % key


def prefix_of(flags: int) -> bytes:
    """Return what a fresh value with these client flags begins with."""
    return PREFIX.pack(FRESH, flags, b"")[:6]


def optional_bytes(reply: Any) -> bytes | None:
    """Check that a reply is what GET can have. Raises ProtocolError."""
    return None if reply is None else needed_bytes(reply)


def plain(value: bytes | None, prefix: bytes, refresh_ahead: float, now: float) -> bytes | None:
    """Return the body of a fresh value that begins so and is not near its expiry, None of anything else.

    `refresh_ahead` in s; `now` in s since 1970. The clocks of hosts differ: the server decides who refreshes.
    """
    if value is None or not value.startswith(prefix) or len(value) < HEADER.size:
        return None
    if refresh_ahead and int.from_bytes(value[14:22], "big") < (now + refresh_ahead) * 1000:
        return None
    return value[HEADER.size :]


def get_two(first: bytes, second: bytes) -> bytes:
    """Return a request for two values of one node."""
    return b"*3\r\n$4\r\nMGET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(first), first, len(second), second)


def pair(reply: Any) -> tuple[bytes | None, bytes | None]:
    """Check that a reply is what that request can have. Raises ProtocolError."""
    first, second = listed(reply, 2)
    return optional_bytes(first), optional_bytes(second)


def get(key: bytes) -> Command:
    """Read a value and nothing else."""
    return Command(key, (b"GET", key), optional_bytes)


def get_many(keys: Sequence[bytes]) -> Command:
    """Read values of one node."""
    return Command(keys[0], (b"MGET", *keys), lambda reply: [optional_bytes(each) for each in listed(reply, len(keys))])


def time_left(key: bytes) -> Command:
    """Ask how long a value has to live: ms, −1 = for ever, −2 = it is gone."""
    return Command(key, (b"PTTL", key), _integer)


def asking() -> Command:
    """Say that the next command was sent on from the node that gives its slot away."""
    return Command(b"", (b"ASKING",), done)


def figures() -> Command:
    """Ask for the server's own figures."""
    return Command(b"", (b"INFO",), read_figures)


def lease_get(ask: Ask, token: bytes, under: Under | None = None) -> Command:
    """Ask for the value, or for a lease with this token."""
    return _win(LEASE_GET, ask, under, token)


def steal(ask: Ask, held: Token, token: bytes, under: Under | None = None) -> Command:
    """Void a lease that somebody else holds, then do as a lease-get does."""
    return _win(STEAL, ask, under, token, _held(held))


def lease_set(fill: Fill, held: Token, version: bytes) -> Command:
    """Store under the token. There is no form without it: a fill without it brings stale values back."""
    prefix = PREFIX.pack(FRESH, fill.flags, version)
    ttl = _ms(max(1, int(fill.ttl)))
    return _call(LEASE_SET, _key(fill.lease, held), _outcome, _held(held), prefix, fill.body, ttl)


def release(lease: Lease, held: Token) -> Command:
    """Give the lease back; without a value in hand, drop the value whose version the token names."""
    return _call(RELEASE, _key(lease, held), _integer, _held(held), b"keep" if lease.value is not None else b"drop")


def delete(keys: Sequence[bytes]) -> Command:
    """Delete keys of one node in one step."""
    return Command(keys[0], (b"DEL", *keys), _integer)


def mark_stale(keys: Sequence[bytes], stale_for: int) -> Command:
    """Leave values of one node as stale for at most so many s, and never longer than they had."""
    numbers = (b"%d" % len(keys), *keys, _ms(stale_for))
    return Command(keys[0], (b"EVALSHA", MARK_STALE.sha, *numbers), _integer)


def answer(
    ask: Ask, found: "Found | ResponseError", token: bytes, epoch: int, born: int, generation: int = 0
) -> Answer:
    """Turn the reply to a lease-get into what its caller may do. Raises NodeError on an error reply."""
    key = ask.key
    if isinstance(found, ResponseError):
        if code(found) in ("OOM", "WRONGTYPE"):  # no room for the lease, or not ours
            return Lease(key, None)
        raise refused(found)
    decision, left = found.decision, found.left
    if decision is Decision.UNSTORABLE:
        return Lease(key, None)
    if decision is Decision.WON:
        return Lease(key, _token(token, epoch, born, generation))
    if decision is Decision.WON_STALE:
        return Lease(key, _token(token, epoch, born, generation), found.body, False, found.flags, left)
    if decision is Decision.WAIT:
        return Wait(POLL, _token(found.holder, epoch, born, generation))
    if decision is Decision.STALE:
        return Stale(found.body, found.flags, left, _token(found.holder, epoch, born, generation))
    version = _token(found.version, epoch, born, generation)
    if decision is Decision.REFRESH:
        return Lease(key, version, found.body, True, found.flags, left)
    return Hit(found.body, found.flags, left, version)


def outcome(found: "Stored | Refused | ResponseError") -> Stored | Refused:
    """Turn the reply to a lease-set into its outcome. Raises NodeError on an error reply."""
    if not isinstance(found, ResponseError):
        return found
    if code(found) == "OOM":  # the lease has gone: the next reader wins
        return Refused(f"the server is out of memory: {complaint(found)}")
    raise refused(found)


def done(value: Any) -> Any:
    """Return what a command has brought. Raises NodeError when it was refused."""
    if isinstance(value, ResponseError):
        raise refused(value)
    return value


def seen(value: "bytes | ResponseError | None", left: "int | ResponseError") -> Hit | None:
    """Turn the replies to GET and PTTL into a value, None when there is none of ours. Raises NodeError."""
    for reply in (value, left):
        if isinstance(reply, ResponseError) and code(reply) != "WRONGTYPE":
            raise refused(reply)
    if not isinstance(value, bytes) or not isinstance(left, int) or left == -2 or not _ours(value):
        return None
    _, flags, _, _ = HEADER.unpack_from(value)
    return Hit(value[HEADER.size :], flags, _seconds(left))


_CODES = {"OutOfMemoryError": "OOM", "NoScriptError": "NOSCRIPT", "ReadOnlyError": "READONLY", "MovedError": "MOVED"}
_CODES |= {"AskError": "ASK", "MasterDownError": "MASTERDOWN", "ClusterDownError": "CLUSTERDOWN"}
_CODES |= {"TryAgainError": "TRYAGAIN", "ClusterCrossSlotError": "CROSSSLOT", "NoPermissionError": "NOPERM"}


def code(error: ResponseError) -> str:
    """Return the word that an error reply begins with. redis-py strips it where it has a class for the error."""
    return _CODES.get(type(error).__name__) or str(error).partition(" ")[0]


def redirection(error: ResponseError, node: str) -> tuple[int, str]:
    """Return the slot and the name of its node that MOVED or ASK told; `node` said so, an empty host is its own."""
    words = str(error).split(" ")
    slot, (host, _, port) = words[-2:][0], words[-1].rpartition(":")
    if not slot.isdecimal() or not port.isdecimal():
        raise ProtocolError(f"unexpected redirection {error!s:.80}")
    return int(slot), node_name(host, int(port), node)


def node_name(host: str, port: int, told_by: str) -> str:
    """Return "host:port"; an empty host is that of the node that has told."""
    if not host or host == "?":
        host = told_by.rpartition(":")[0].strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def refused(error: ResponseError) -> NodeError:
    """Return the error of a command that the server has not done."""
    return NodeError(f"refused: {complaint(error)}")


def complaint(error: ResponseError) -> str:
    """Return an error reply as the server has put it."""
    text, word = str(error), code(error)
    return text if text.startswith(word) else f"{word} {text}"


def read_slots(reply: Any) -> list[tuple[int, int, str, int]]:
    """Read the reply to CLUSTER SLOTS: first and last slot, host and port of the primary. Raises NodeError."""
    return [_range(each) for each in listed(done(reply))]


def find_primary(service: str) -> tuple[bytes, ...]:
    """Ask a Sentinel where the primary of a service is."""
    return (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service.encode())


def read_primary(reply: Any) -> tuple[str, int] | None:
    """Read host and port of a primary, None when the Sentinel does not know the service. Raises NodeError."""
    if done(reply) is None:
        return None
    host, port = listed(reply, 2)
    if not needed_bytes(port).isdigit():
        raise _unexpected(reply)
    return needed_bytes(host).decode(errors="replace"), int(port)


def read_figures(reply: Any) -> dict[str, Any]:
    """Read the reply to INFO: numbers as numbers, everything else as text."""
    lines = [line.partition(":") for line in needed_bytes(reply).decode(errors="replace").splitlines()]
    return {name: int(text) if text.isdecimal() and len(text) < 20 else text for name, colon, text in lines if colon}


def _call(script: Script, key: bytes, read: Callable[[Any], Any], *arguments: bytes) -> Command:
    return Command(key, (b"EVALSHA", script.sha, b"2", key, lease_key(key), *arguments), read)


def _win(script: Script, ask: Ask, under: Under | None, *given: bytes) -> Command:
    token, *held = given
    arguments = (token, _ms(max(0.001, ask.lease_for)), _ms(ask.refresh_ahead), *held)
    if under is None:
        return _call(script, ask.key, _found, *arguments)
    key = under.prefix + ask.key
    keys = (b"3", key, lease_key(key), under.key)
    return Command(key, (b"EVALSHA", script.sha, *keys, *arguments, under.digest), _found_under)


def _ms(seconds: float) -> bytes:
    return b"%d" % max(0, round(seconds * 1000))


def _seconds(left: int) -> float | None:
    return None if left < 0 else left / 1000


def _held(token: Token) -> bytes:
    return token.cas.to_bytes(8, "big")


def _key(lease: Lease, held: Token) -> bytes:
    return wire_key(held.generation, lease.key) if held.generation else lease.key


def _token(held: bytes, epoch: int, born: int, generation: int) -> Token:
    return Token(int.from_bytes(held, "big"), epoch, born, generation)


def _ours(value: bytes) -> bool:
    return len(value) >= HEADER.size and value[:2] in (FRESH, STALE)


def _found(reply: Any) -> Found:
    name, left, value, holder = [*listed(reply), None, None, None][:4]
    try:
        decision = Decision[needed_bytes(name).decode()]
    except (KeyError, UnicodeDecodeError):
        raise _unexpected(reply) from None
    if holder is not None and len(needed_bytes(holder)) != 8:
        return Found(Decision.UNSTORABLE, None)  # somebody else's value where the lease would be
    if value is None:
        if decision not in (Decision.WON, Decision.WAIT, Decision.UNSTORABLE):
            raise _unexpected(reply)
        return Found(decision, None, holder=holder or b"")
    if not _ours(needed_bytes(value)):
        raise _unexpected(reply)
    _, flags, version, _ = HEADER.unpack_from(value)
    return Found(decision, _seconds(_integer(left)), value[HEADER.size :], flags, version, holder or b"")


def _found_under(reply: Any) -> Found | Other:
    name, raw = [*listed(reply), None][:2]
    return Other(optional_bytes(raw)) if name == scripts.OTHER_RECORD.encode() else _found(reply)


_OUTCOMES: dict[int, Stored | Refused] = {
    0: Refused("deleted or expired while loading"),
    1: Refused("invalidated or taken over while loading"),
    2: Stored(),
}


def _outcome(reply: Any) -> Stored | Refused:
    if _integer(reply) not in _OUTCOMES:
        raise _unexpected(reply)
    return _OUTCOMES[reply]


def _range(reply: Any) -> tuple[int, int, str, int]:
    first, last, primary = [*listed(reply), None, None, None][:3]
    host, port = [*listed(primary), None, None][:2]
    if not 0 <= _integer(first) <= _integer(last) < REDIS_CLUSTER_HASH_SLOTS:
        raise _unexpected(reply)
    return first, last, (optional_bytes(host) or b"").decode(errors="replace"), _integer(port)


def _integer(reply: Any) -> int:
    if type(reply) is not int:
        raise _unexpected(reply)
    return reply


def needed_bytes(reply: Any) -> bytes:
    """Check that a reply is a string. Raises ProtocolError."""
    if type(reply) is not bytes:
        raise _unexpected(reply)
    return reply


def listed(reply: Any, size: int | None = None) -> list[Any]:
    """Check that a reply is a list, of this size. Raises ProtocolError."""
    if type(reply) is not list or (size is not None and len(reply) != size):
        raise _unexpected(reply)
    return reply


def _unexpected(reply: Any) -> ProtocolError:
    return ProtocolError(f"unexpected reply {reply!r:.120}")
