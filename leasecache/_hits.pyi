"""Compiled twin of `leasecache._pure_hits`: the short way of a plain hit."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

from leasecache._keys import Renderer, Ring

Rest = Callable[[Sequence[bytes], Any, Any, int, Any], Sequence[Any]]

class Tally:
    """Counts the plain hits of one function."""

    hits: int
    def __init__(self) -> None: ...

class Marks:
    """Draws the marks by which random numbers of ours become CAS numbers."""

    def __init__(self, bits: Callable[[int], int], fixed: int) -> None: ...
    def __call__(self) -> bytes:
        """Return the next mark."""

class ConnectionState:
    """The fields of a connection that readers look at."""

    wire: Any
    mark: Callable[[], bytes]
    epoch: int
    term: int
    pooled: bool

class PoolState:
    """The fields of a pool that readers look at."""

    idle: list[Any]
    term: int
    waiting: int

class EpochState:
    """The field of the count of connections that readers look at."""

    latest: int

class ProbeState:
    """The field of a node's back-off that readers look at."""

    delay: float

class RecordState:
    """The fields of a guard record that readers look at; they never change."""

    head: bytes
    prefix: bytes
    reply: bytes
    marks: frozenset[bytes]

class TrustState:
    """The field of a node's trust that readers look at."""

    known: Any

class NodeReader:
    """Reads keys from one memcached server: plain hits over an idle connection, all else by `rest`."""

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
    ) -> None: ...
    def __call__(self, key: bytes) -> Any:
        """Return the value of a plain hit, or the answer. Raises NodeError."""

    def many(self, keys: Sequence[bytes]) -> list[Any]:
        """Return the value of each plain hit, or the answer, with one round trip per 32 KiB of requests."""

class RingReader:
    """Reads each key from the node that owns it."""

    def __init__(self, ring: Ring, readers: Sequence[Callable[[bytes], Any]]) -> None: ...
    def __call__(self, key: bytes) -> Any:
        """Return what the reader of the key's owner returns."""

class Item:
    """What a store in memory holds under a key."""

    flags: int
    value: bytes
    cas: int
    expires: float
    stale: bool
    taken: bool
    def __init__(self, flags: int, value: bytes, cas: int, expires: float) -> None: ...

class MemoryReader:
    """Reads keys from a store in this process: plain hits without its lock, all else by `rest`."""

    def __init__(
        self,
        items: Any,
        clock: Callable[[], float] | None,
        refresh_ahead: float,
        flags: int,
        rest: Callable[[bytes], Any],
    ) -> None: ...
    def __call__(self, key: bytes) -> Any:
        """Return the value of a plain hit, or the answer."""

class Bypass:
    """Tells whether calls in this context must neither be served nor fill."""

    def __init__(self, switch: ContextVar[bool], in_transaction: Callable[[], bool] | None) -> None: ...
    def __call__(self) -> bool:
        """Return true inside `Cache.bypass` and while the application is in a transaction."""

class Call:
    """Calls one cached function: plain hits are served here, whatever else a call turns out to be, by `otherwise`."""

    def __init__(
        self,
        runtime: Any,
        bind: Callable[[], tuple[Any, Renderer, Callable[[bytes], Any]]],
        values: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]],
        direct: int,
        stats: Tally,
        otherwise: Callable[..., Any],
    ) -> None: ...
    def __call__(self, load: Callable[..., Any], skip: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the value; the first `skip` arguments are not in the key."""

    def of(self, load: Callable[..., Any], skip: int) -> Callable[..., Any]:
        """Return this as a function of its arguments alone."""

    def many(self, arguments: list[Any]) -> tuple[Any, dict[Any, Any], list[tuple[Any, bytes, Any]]] | None:
        """Return (bound, {argument: value} of the plain hits, (argument, key, answer) of the others)."""

class AsyncCall:
    """Calls one cached coroutine function, as `Call` does a function; what it returns is to be awaited at once."""

    def __init__(
        self,
        runtime: Any,
        bind: Callable[[], tuple[Any, Renderer, Callable[[bytes], Any]]],
        values: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]],
        direct: int,
        stats: Tally,
        otherwise: Callable[..., Awaitable[Any]],
    ) -> None: ...
    def serve(
        self, load: Callable[..., Any], skip: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        """Return an awaitable of the value; the first `skip` arguments are not in the key."""

    def many(
        self, arguments: list[Any]
    ) -> Coroutine[Any, Any, tuple[Any, dict[Any, Any], list[tuple[Any, bytes, Any]]] | None]:
        """Return (bound, {argument: value} of the plain hits, (argument, key, answer) of the others)."""
