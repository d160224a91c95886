"""How often the loader ran for each invalidation, and how often an answer was too old."""

import contextlib
from collections.abc import Iterator


class Tally:
    """Counts of one hot key.

    An interval lasts from one invalidation to the next; the first, of the cold key, begins with the test. A load counts
    in the interval in which it began: one that an invalidation overtakes is refused by the cache, and the load after it
    belongs to the next interval. While an invalidation is on its way nobody can tell whether a load that begins comes
    before or after it; such a load counts in the old interval if that had none, else in the new one.
    """

    def __init__(self) -> None:
        self.loads = [0]  # by interval
        self.version = 0  # the latest that was committed and whose invalidation the cache has acknowledged
        self.stale = 0  # answers older than `version` was when their call began
        self._underway = False

    @property
    def invalidations(self) -> int:
        """How many were sent."""
        return len(self.loads) - 1

    @contextlib.contextmanager
    def invalidating(self, version: int) -> Iterator[None]:
        """Begin the next interval; in the end `version` is what callers must get, unless it raises."""
        self.loads.append(0)
        self._underway = True
        try:
            yield
            self.version = version
        finally:
            self._underway = False

    def load_began(self) -> None:
        """Count a run of the loader."""
        before = self._underway and not self.loads[-2]
        self.loads[-2 if before else -1] += 1

    def answered(self, version: int, due: int) -> None:
        """Count the answer to a call; `due` is what `self.version` was when the call began."""
        self.stale += version < due
