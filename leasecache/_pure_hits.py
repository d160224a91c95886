"""Pure-Python twin of `leasecache._hits`: the short way of a plain hit."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

from leasecache._pure_keys import Renderer, Ring
from leasecache._pure_states import ConnectionState, EpochState, PoolState, ProbeState, RecordState, TrustState
from leasecache.errors import NodeError

CHUNK = 32 * 1024  # bytes of requests sent before their replies are read; fits any socket buffer
OVERHEAD = 64  # bytes of a request beside the key, at most

# What gives any other answer: keys, the connection that was asked (None: nothing was asked), what it brought for each
# key or the error, the epoch before it was asked, and of a guarded request the record that it was made under. What was
# brought then begins with the record's reply, None if it is as that has it. It has to give back the connection, or to
# discard it.
Rest = Callable[[Sequence[bytes], Any, Any, int, Any], Sequence[Any]]


class Tally:
    """Counts the plain hits of one function."""

    __slots__ = ("hits",)

    def __init__(self) -> None:
        self.hits = 0


class Marks:
    """Draws the marks by which random numbers of ours become CAS numbers.

    Each is for one command that makes a CAS; servers know them since 1.6.27.
    """

    __slots__ = ("_bits", "_fixed")

    def __init__(self, bits: Callable[[int], int], fixed: int) -> None:
        """`bits(n)` gives n random bits; those of `fixed` are set in every number."""
        self._bits = bits
        self._fixed = fixed

    def __call__(self) -> bytes:
        """Return the next mark."""
        return b" E%d" % (self._bits(62) | self._fixed)


class NodeReader:
    """Reads keys from one memcached server: plain hits over an idle connection, all else by `rest`."""

    __slots__ = ("_epochs", "_flags", "_guard", "_pool", "_probe", "_rest", "_tail", "_trust")

    def __init__(
        self,
        pool: PoolState,
        probe: ProbeState,
        epochs: EpochState,
        tail: bytes,
        flags: int,
        rest: Rest,
        trust: TrustState | None = None,
        guard: bytes | None = None,
    ) -> None:
        """`tail` follows a key in a lease-get, before the connection's mark; `flags` are those of a plain hit.

        With `trust` in the node each request begins with a read of its guard record, which has to name `guard`.
        """
        self._trust = trust
        self._guard = guard
        self._pool: Any = pool
        self._probe = probe
        self._epochs = epochs
        self._tail = tail
        self._flags = flags
        self._rest = rest

    def __call__(self, key: bytes) -> Any:
        """Return the value of a plain hit, or the answer. Raises NodeError."""
        found = self._answers([key])[0]
        if isinstance(found, NodeError):  # the guard's: of many keys each has its own
            raise found
        return found

    def many(self, keys: Sequence[bytes]) -> list[Any]:
        """Return the value of each plain hit, or the answer, with one round trip per 32 KiB of requests."""
        found: list[Any] = []
        chunk: list[bytes] = []
        size = 0
        for key in keys:
            if size + len(key) + OVERHEAD > CHUNK and chunk:
                found += self._answers(chunk)
                chunk, size = [], 0
            chunk.append(key)
            size += len(key) + OVERHEAD
        if chunk:
            found += self._answers(chunk)
        return found

    def _answers(self, keys: Sequence[bytes]) -> Sequence[Any]:
        known = self._trust.known if self._trust is not None else None
        unusable = self._trust is not None and (known is None or self._guard not in known.marks)
        connection = None if unusable else self._take()
        if connection is None:
            return self._rest(keys, None, None, 0, None)
        epoch = self._epochs.latest  # before the request is sent: a later connection may be to a restarted server
        try:
            found = self._ask(connection, keys, known)
        except NodeError as error:
            return self._rest(keys, connection, error, epoch, known)
        except BaseException:  # a signal, a greenlet's timeout: half an answer may be left on the wire
            self._pool.discard(connection)
            raise
        values = found if known is None else found[1:]
        if any(type(one) is not bytes for one in values) or (known is not None and found[0] is not None):
            return self._rest(keys, connection, found, epoch, known)
        self._pool.release(connection)
        return values  # type: ignore[no-any-return]

    def _ask(self, connection: ConnectionState, keys: Sequence[bytes], known: RecordState | None) -> Any:
        mark, tail = connection.mark, self._tail
        if known is None:
            request = b"".join([b"mg %b%b%b\r\n" % (key, tail, mark()) for key in keys])
            return connection.wire.hits(request, len(keys), self._flags)
        parts = [
            b"%b%b%b%b\r\n" % (b"mg " + known.prefix if i else known.head, key, tail, mark())
            for i, key in enumerate(keys)
        ]
        return connection.wire.guarded_hits(b"".join(parts), len(keys), self._flags, known.reply)

    def _take(self) -> Any:
        """Return an idle connection; None when there is none, or the node is left alone."""
        try:
            return None if self._probe.delay else self._pool.idle.pop()
        except IndexError:
            return None


class RingReader:
    """Reads each key from the node that owns it."""

    __slots__ = ("_readers", "_ring")

    def __init__(self, ring: Ring, readers: Sequence[Callable[[bytes], Any]]) -> None:
        """Take the nodes' readers in the order of the ring's seeds."""
        self._ring = ring
        self._readers = tuple(readers)
        if len(self._readers) != len(ring):
            raise ValueError("as many readers as nodes")

    def __call__(self, key: bytes) -> Any:
        """Return what the reader of the key's owner returns."""
        return self._readers[self._ring.owner(key)](key)


class Item:
    """What a store in memory holds under a key."""

    __slots__ = ("cas", "expires", "flags", "stale", "taken", "value")

    def __init__(self, flags: int, value: bytes, cas: int, expires: float) -> None:
        """`expires` in s on the store's clock."""
        self.flags = flags
        self.value = value
        self.cas = cas
        self.expires = expires
        self.stale = self.taken = False


class MemoryReader:
    """Reads keys from a store in this process: plain hits without its lock, all else by `rest`.

    Here `rest` gives the plain hits as well: only compiled code can look and touch with no other thread in between.
    """

    __slots__ = ("_rest",)

    def __init__(
        self,
        items: Any,
        clock: Callable[[], float] | None,
        refresh_ahead: float,
        flags: int,
        rest: Callable[[bytes], Any],
    ) -> None:
        """`items` is an OrderedDict of Items; no clock = `time.monotonic`."""
        self._rest = rest

    def __call__(self, key: bytes) -> Any:
        """Return the value of a plain hit, or the answer."""
        return self._rest(key)


class Bypass:
    """Tells whether calls in this context must neither be served nor fill."""

    __slots__ = ("_in_transaction", "_switch")

    def __init__(self, switch: ContextVar[bool], in_transaction: Callable[[], bool] | None) -> None:
        """`switch` is true inside `Cache.bypass`."""
        self._switch = switch
        self._in_transaction = in_transaction

    def __call__(self) -> bool:
        """Return true inside `Cache.bypass` and while the application is in a transaction."""
        return self._switch.get() or (self._in_transaction is not None and bool(self._in_transaction()))


class Call:
    """Calls one cached function: plain hits are served here, whatever else a call turns out to be, by `otherwise`."""

    __slots__ = ("_bind", "_direct", "_otherwise", "_route", "_runtime", "_stats", "_values")

    def __init__(
        self,
        runtime: Any,
        bind: Callable[[], tuple[Any, Renderer, Callable[[bytes], Any]]],
        values: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]],
        direct: int,
        stats: Tally,
        otherwise: Callable[..., Any],
    ) -> None:
        """`direct` positional arguments are the key's fields in order; `values` finds those of other calls.

        `bind` gives what is bound to the active store, its renderer, and what makes a value of a plain hit's bytes.
        `otherwise` takes what was bound, the loader, its arguments, the key, and the answer, or the bytes that were no
        value.
        """
        self._runtime = runtime
        self._bind = bind
        self._values = values
        self._direct = direct
        self._stats = stats
        self._otherwise = otherwise
        self._route: tuple[Any, Renderer, Callable[[bytes], Any]] | None = None

    def __call__(self, load: Callable[..., Any], skip: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the value; the first `skip` arguments are not in the key."""
        if self._runtime.bypassed():
            return load(*args, **kwargs)
        bound, renderer, decode = self._routed()
        key = renderer.from_python(self._fields(skip, args, kwargs))
        try:
            found = bound.read(key)
        except NodeError as error:
            found = error
        if type(found) is not bytes:
            return self._otherwise(bound, load, args, kwargs, key, found)
        try:
            value = decode(found)
        except Exception:  # what is loaded runs code of the value's class; whatever it raises is a miss
            return self._otherwise(bound, load, args, kwargs, key, found)
        self._stats.hits += 1
        return value

    def of(self, load: Callable[..., Any], skip: int) -> Callable[..., Any]:
        """Return this as a function of its arguments alone."""
        return lambda *args, **kwargs: self(load, skip, args, kwargs)

    def many(self, arguments: list[Any]) -> tuple[Any, dict[Any, Any], list[tuple[Any, bytes, Any]]] | None:
        """Return (bound, {argument: value} of the plain hits, (argument, key, answer) of the others).

        None when an argument does not have the key's parameters in order.
        """
        bound, renderer, decode = self._routed()
        if not self._are_direct(arguments):
            return None
        keys = renderer.from_many(arguments)
        return self._sorted(bound, decode, arguments, keys, bound.read_many(keys))

    def _are_direct(self, arguments: list[Any]) -> bool:
        return all((len(a) if isinstance(a, tuple) else 1) == self._direct for a in arguments)

    def _sorted(
        self,
        bound: Any,
        decode: Callable[[bytes], Any],
        arguments: list[Any],
        keys: list[bytes],
        answers: Sequence[Any],
    ) -> tuple[Any, dict[Any, Any], list[tuple[Any, bytes, Any]]]:
        found: dict[Any, Any] = {}
        rest = []
        for argument, key, answer in zip(arguments, keys, answers, strict=True):
            try:
                if type(answer) is bytes:
                    found[argument] = decode(answer)
                else:
                    rest.append((argument, key, answer))
            except Exception:
                rest.append((argument, key, answer))
        hits = len(found)  # beforehand: a call between read and write would lose counts of other threads
        self._stats.hits += hits
        return bound, found, rest

    def _fields(self, skip: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        direct = not skip and not kwargs and len(args) == self._direct
        return args if direct else self._values(args[skip:], kwargs)

    def _routed(self) -> tuple[Any, Renderer, Callable[[bytes], Any]]:
        route = self._route
        if route is None or route[0].driver is not self._runtime.active:
            route = self._route = self._bind()
        return route


class AsyncCall:
    """Calls one cached coroutine function, as `Call` does a function; what it returns is to be awaited at once."""

    __slots__ = ("_call",)

    def __init__(
        self,
        runtime: Any,
        bind: Callable[[], tuple[Any, Renderer, Callable[[bytes], Any]]],
        values: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]],
        direct: int,
        stats: Tally,
        otherwise: Callable[..., Awaitable[Any]],
    ) -> None:
        """Take what `Call` takes; what `bind` gives reads in awaitables, and `otherwise` is a coroutine function."""
        self._call = Call(runtime, bind, values, direct, stats, otherwise)

    async def serve(self, load: Callable[..., Any], skip: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the value; the first `skip` arguments are not in the key."""
        call = self._call
        if call._runtime.bypassed():
            return await load(*args, **kwargs)
        bound, renderer, decode = call._routed()
        key = renderer.from_python(call._fields(skip, args, kwargs))
        try:
            found = await bound.read(key)
        except NodeError as error:
            found = error
        if type(found) is bytes:
            with contextlib.suppress(Exception):  # whatever the value's class raises is a miss
                value = decode(found)
                call._stats.hits += 1
                return value
        return await call._otherwise(bound, load, args, kwargs, key, found)

    async def many(self, arguments: list[Any]) -> tuple[Any, dict[Any, Any], list[tuple[Any, bytes, Any]]] | None:
        """Return (bound, {argument: value} of the plain hits, (argument, key, answer) of the others).

        None when an argument does not have the key's parameters in order.
        """
        call = self._call
        bound, renderer, decode = call._routed()
        if not call._are_direct(arguments):
            return None
        keys = renderer.from_many(arguments)
        return call._sorted(bound, decode, arguments, keys, await bound.read_many(keys))
