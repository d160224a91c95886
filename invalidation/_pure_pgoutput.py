"""Pure-Python twin of `leasecache.invalidation._pgoutput`: what is done with keys by the thousand, and no short way.

The long way, by `pgoutput` and `router`, takes every frame; it is the oracle of the compiled code.
"""

from collections.abc import Sequence
from typing import Any

from leasecache.guard import LONGEST


def merge(keys: dict[bytes, float], more: dict[bytes, float]) -> None:
    """Add `more` to `keys`, each with the s it may be served stale; of two times for one key the shorter holds."""
    if not keys:
        keys.update(more)
        return
    for key, stale_for in more.items():
        known = keys.get(key)
        if known is None or stale_for < known:
            keys[key] = stale_for


def name(groups: dict[float, list[bytes]], keys: dict[bytes, float], prefix: bytes | None, plain: bool) -> None:
    """Add what `keys` are called on a node to `groups`, by their s: with a prefix, as they are (`plain`), or both.

    A key that would be too long for memcached with a prefix is no function's, and has none.
    """
    for key, stale_for in keys.items():
        group = groups.setdefault(stale_for, [])
        if prefix is not None and len(key) <= LONGEST:
            group.append(prefix + key)
        if plain:
            group.append(key)


class Frames(list[bytes]):
    """A sequence of CopyData frames as libpq hands them out."""

    def __init__(self) -> None:
        super().__init__()
        self.status = 0

    def collect(self, pgconn: Any, limit: int) -> None:
        """Take what a connection has, up to `limit` frames in all; `status` is then libpq's last answer if below 1."""
        while len(self) < limit:
            size, data = pgconn.get_copy_data(1)
            if size <= 0:
                self.status = size
                return
            self.append(bytes(data))


class Walker:
    """Takes the frames that need no second thought: begins, commits, keepalives, changes whose keys are told."""

    def learn(self, relid: int, target: Any) -> None:
        """Note the target of a relation; None = no rule names it."""

    def walk(self, frames: Sequence[bytes], start: int, run: Any, most_keys: int) -> int:
        """Take frames from `start` on into `run`; return the position of the first one that goes the long way."""
        return start
