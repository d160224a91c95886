"""Pure-Python twin of `leasecache.invalidation._pgoutput`: no short way.

The long way, by `pgoutput` and `router`, takes every frame; it is the oracle of the compiled code.
"""

from typing import Any


class Walker:
    """Takes the frames that need no second thought: begins, changes whose keys the stream tells, commits."""

    def learn(self, relid: int, target: Any) -> None:
        """Note the target of a relation; None = no rule names it."""

    def walk(self, frames: list[bytes], start: int, run: Any, most_keys: int) -> int:
        """Take frames from `start` on into `run`; return the position of the first one that goes the long way."""
        return start
