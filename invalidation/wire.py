"""Reading Postgres messages: the one place where bytes are taken, bounds-checked."""

from leasecache.errors import SourceError


class Reader:
    """Take values from one message, front to back. Whatever the message lacks is a SourceError, never a short value."""

    __slots__ = ("_at", "_data", "_end", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0
        self._end = len(data)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        start = self._at
        stop = start + size
        if size < 0 or stop > self._end:
            raise self.error(f"wants {size} bytes at offset {start}")
        self._at = stop
        return self._data[start:stop]

    def uint(self, size: int) -> int:
        """Return the next big-endian unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sint(self, size: int) -> int:
        """Return the next big-endian signed integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big", signed=True)

    def count(self, size: int) -> int:
        """Return the next signed integer, which says how many of something follow."""
        value = self.sint(size)
        if value < 0:
            raise self.error(f"announces {value} items")
        return value

    def string(self) -> str:
        """Return the next NUL-terminated UTF-8 string."""
        stop = self._data.find(b"\0", self._at)
        if stop < 0:
            raise self.error(f"has an unterminated string at offset {self._at}")
        raw = self.take(stop - self._at)
        self.take(1)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error("has a string that is not UTF-8") from None

    def rest(self) -> bytes:
        """Return everything that is left."""
        return self.take(self._end - self._at)

    def finish(self) -> None:
        """Raise SourceError when bytes are left over."""
        if self._at != self._end:
            raise self.error(f"has {self._end - self._at} bytes too many")

    def error(self, fault: str) -> SourceError:
        """Return the error that says what is wrong with this message."""
        return SourceError(f"{self._what} of {self._end} bytes {fault}")
