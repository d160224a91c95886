"""Compiled twin of `leasecache._pure_hits`: the short way of a plain hit."""

from collections.abc import Callable, Sequence
from typing import Any

from leasecache._keys import Ring

Rest = Callable[[Sequence[bytes], Any, Any, int], Sequence[Any]]

class Tally:
    """Counts the plain hits of one function."""

    hits: int
    def __init__(self) -> None: ...

class NodeReader:
    """Reads keys from one memcached server: plain hits over an idle connection, all else by `rest`."""

    def __init__(self, pool: Any, probe: Any, epochs: Any, tail: bytes, flags: int, rest: Rest) -> None: ...
    def __call__(self, key: bytes) -> Any:
        """Return the value of a plain hit, or the answer. Raises NodeError."""

    def many(self, keys: Sequence[bytes]) -> list[Any]:
        """Return the value of each plain hit, or the answer, with one round trip per 32 KiB of requests."""

class RingReader:
    """Reads each key from the node that owns it."""

    def __init__(self, ring: Ring, readers: Sequence[Callable[[bytes], Any]]) -> None: ...
    def __call__(self, key: bytes) -> Any:
        """Return what the reader of the key's owner returns."""

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
