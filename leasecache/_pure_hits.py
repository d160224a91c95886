"""Pure-Python twin of `leasecache._hits`: the short way of a plain hit."""

from collections.abc import Callable, Sequence
from typing import Any

from leasecache._pure_keys import Ring
from leasecache.errors import NodeError

CHUNK = 32 * 1024  # bytes of requests sent before their replies are read; fits any socket buffer
OVERHEAD = 64  # bytes of a request beside the key, at most

# What gives any other answer: keys, the connection that was asked (None: nothing was asked), what it brought for each
# key or the error, and the epoch before it was asked. It has to give back the connection, or to discard it.
Rest = Callable[[Sequence[bytes], Any, Any, int], Sequence[Any]]


class Tally:
    """Counts the plain hits of one function."""

    __slots__ = ("hits",)

    def __init__(self) -> None:
        self.hits = 0


class NodeReader:
    """Reads keys from one memcached server: plain hits over an idle connection, all else by `rest`."""

    __slots__ = ("_epochs", "_flags", "_pool", "_probe", "_rest", "_tail")

    def __init__(self, pool: Any, probe: Any, epochs: Any, tail: bytes, flags: int, rest: Rest) -> None:
        """`tail` follows a key in a lease-get, before the connection's mark; `flags` are those of a plain hit."""
        self._pool = pool
        self._probe = probe
        self._epochs = epochs
        self._tail = tail
        self._flags = flags
        self._rest = rest

    def __call__(self, key: bytes) -> Any:
        """Return the value of a plain hit, or the answer. Raises NodeError."""
        return self._answers([key])[0]

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
        connection = self._take()
        if connection is None:
            return self._rest(keys, None, None, 0)
        epoch = self._epochs.latest  # before the request is sent: a later connection may be to a restarted server
        try:
            request = b"".join([b"mg %b%b%b\r\n" % (key, self._tail, connection.mark()) for key in keys])
            found = connection.wire.hits(request, len(keys), self._flags)
        except NodeError as error:
            return self._rest(keys, connection, error, epoch)
        except BaseException:  # a signal, a greenlet's timeout: half an answer may be left on the wire
            self._pool.discard(connection)
            raise
        if any(type(one) is not bytes for one in found):
            return self._rest(keys, connection, found, epoch)
        self._pool.release(connection)
        return found  # type: ignore[no-any-return]

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

    def __call__(self, key: bytes) -> Any:
        """Return what the reader of the key's owner returns."""
        return self._readers[self._ring.owner(key)](key)


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
        """`items` is an OrderedDict of what has expires, stale, taken, flags and value; no clock = `time.monotonic`."""
        self._rest = rest

    def __call__(self, key: bytes) -> Any:
        """Return the value of a plain hit, or the answer."""
        return self._rest(key)
