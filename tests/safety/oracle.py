"""What an answer may be: the promises that a run holds every value against.

A call that began after an invalidation was acknowledged gets nothing older than that invalidation's version, whether
from the cache or from a load, its own or another caller's. The one exception is a value that is declared stale, or
that a function with `stale_for` returns: it may be served until `stale_for` s after the first invalidation of it.
"""

from leasecache import Entry
from tests.safety.ledger import Ledger, Mark

SLACK = 1.0  # s; memcached counts whole seconds, and its clock may lag on a busy machine


class Value:
    """The bytes of a row's version: its names, and as much filling as is announced."""

    @staticmethod
    def encode(row: int, version: int, filling: int) -> bytes:
        """Return the bytes of a row's version, with `filling` bytes at the end."""
        return b"%d:%d:%d:%b" % (row, version, filling, b"x" * filling)

    @staticmethod
    def version(row: int, value: bytes) -> int:
        """Return the version. Raises ValueError when these are not the whole bytes of that row."""
        numbers = value.split(b":", 3)
        if len(numbers) != 4 or int(numbers[0]) != row or value != Value.encode(row, *map(int, numbers[1:3])):
            raise ValueError(f"not a value of row {row}: {value[:60]!r}")
        return int(numbers[1])


class Oracle:
    """Judges answers by the ledger."""

    def __init__(self, ledger: Ledger, stale_for: dict[int, float]) -> None:
        """`stale_for` in s by row, 0 = never."""
        self._ledger = ledger
        self._stale_for = stale_for

    def fault(self, mark: Mark, value: bytes, *, stale: bool) -> str | None:
        """Say what is wrong with an answer to a call that began at `mark`; `stale` = it may be a stale one."""
        try:
            version = Value.version(mark.row, value)
        except ValueError as error:
            return str(error)
        if version > self._ledger.version(mark.row):
            return f"version {version} is not yet written"
        if version >= mark.acknowledged:
            return None
        if not stale or not self._stale_for[mark.row]:
            return f"version {version} after the invalidation for version {mark.acknowledged} was acknowledged"
        return self._too_stale(mark, version)

    def outdated(self, mark: Mark, value: bytes) -> str | None:
        """Say what is wrong with the value of a load that had to begin after `mark`."""
        fault = self.fault(mark, value, stale=False)
        if fault is None and Value.version(mark.row, value) < mark.newest:
            return f"a load that began before the call, when version {mark.newest} was there already"
        return fault

    def entry(self, mark: Mark, entry: Entry) -> str | None:
        """Judge a value by the provenance that it was given."""
        if entry.state == "loaded":
            return self.outdated(mark, entry.value)
        return self.fault(mark, entry.value, stale=entry.state == "stale")

    def _too_stale(self, mark: Mark, version: int) -> str | None:
        """Measure from the acknowledgement of the next version's invalidation, the first that concerned this one."""
        first = self._ledger.acknowledged_at(mark.row, version + 1)
        age = None if first is None else (mark.began - first) / 1e9
        if age is not None and age <= self._stale_for[mark.row] + SLACK:
            return None
        since = "long" if age is None else f"{age:.2f} s"
        return f"version {version} stale {since} after its first invalidation, stale_for={self._stale_for[mark.row]:g}"
