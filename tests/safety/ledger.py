"""The database of a run: one version per row, in memory that all processes share.

Each row has one writer. It raises the version, invalidates the row's key until the cache has acknowledged that, and
only then notes the version as acknowledged. A reader looks at the note before its call begins, so whatever it finds
there was acknowledged before the call. Versions are aligned 64-bit words, which a processor reads and writes whole.
Times are those of CLOCK_MONOTONIC, which on Linux is one clock for all processes.
"""

import mmap
import time
from pathlib import Path
from typing import NamedTuple

LAPS = 1 << 14  # versions of a row whose times of acknowledgement are remembered
WORD = 8  # bytes


class Mark(NamedTuple):
    """What was true of a row when a call began."""

    row: int
    began: int  # ns
    acknowledged: int  # the version that nothing served from now on may be older than
    newest: int  # the version in the database


class Ledger:
    """Versions and acknowledgements of `rows` rows, and a few words by which the processes of a run talk."""

    def __init__(self, path: Path, rows: int, workers: int) -> None:
        """Map `path`, and make it first if it is not there."""
        self.rows = rows
        size = (1 + 2 * workers + (2 + LAPS) * rows) * WORD
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            words = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")
        self._stop = words[:1]
        self._done = words[1 : 1 + 2 * workers]
        rest = words[1 + 2 * workers :]
        self._versions, self._acknowledged, self._times = rest[:rows], rest[rows : 2 * rows], rest[2 * rows :]

    def version(self, row: int) -> int:
        """Read a row."""
        return self._versions[row]

    def update(self, row: int) -> int:
        """Commit the next version of a row and return it; only its writer may call this."""
        self._versions[row] += 1
        return self._versions[row]

    def acknowledge(self, row: int, version: int) -> None:
        """Note that the cache has acknowledged the invalidation that followed `version`."""
        self._times[row * LAPS + version % LAPS] = time.monotonic_ns()
        self._acknowledged[row] = version

    def acknowledged_at(self, row: int, version: int) -> int | None:
        """Return when `version` was acknowledged, in ns; None when that is too long ago to be remembered."""
        if self._versions[row] - version >= LAPS - 1:
            return None
        return self._times[row * LAPS + version % LAPS]

    def mark(self, row: int) -> Mark:
        """Note what a call that begins now is bound to."""
        acknowledged, newest = self._acknowledged[row], self._versions[row]
        return Mark(row, time.monotonic_ns(), acknowledged, newest)

    def count(self, worker: int, operations: int, invalidations: int) -> None:
        """Publish what a worker has done so far."""
        self._done[2 * worker], self._done[2 * worker + 1] = operations, invalidations

    def counts(self) -> tuple[int, int]:
        """Return the operations and invalidations of all workers."""
        return sum(self._done[0::2].tolist()), sum(self._done[1::2].tolist())

    def stop(self) -> None:
        """Ask every process to end."""
        self._stop[0] = 1

    @property
    def stopped(self) -> bool:
        """Tell whether the run is over."""
        return bool(self._stop[0])
