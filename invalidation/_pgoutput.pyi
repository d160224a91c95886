"""The short way from frames to the keys that they touch; compiled, see ext/_pgoutput.pyx."""

from collections.abc import Sequence
from typing import overload

from psycopg.pq.abc import PGconn

from leasecache.invalidation.router import Target
from leasecache.invalidation.stream import Run

def merge(keys: dict[bytes, float], more: dict[bytes, float]) -> None:
    """Add `more` to `keys`, each with the s it may be served stale; of two times for one key the shorter holds."""

def name(groups: dict[float, list[bytes]], keys: dict[bytes, float], prefix: bytes | None, plain: bool) -> None:
    """Add what `keys` are called on a node to `groups`, by their s: with a prefix, as they are (`plain`), or both.

    A key that would be too long for memcached with a prefix is no function's, and has none.
    """

class Frames(Sequence[bytes]):
    """A sequence of CopyData frames as libpq hands them out."""

    status: int

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def collect(self, pgconn: PGconn, limit: int) -> None:
        """Take what a connection has, up to `limit` frames in all; `status` is then libpq's last answer if below 1."""

class Walker:
    """Takes the frames that need no second thought: begins, commits, keepalives, changes whose keys are told."""

    def learn(self, relid: int, target: Target | None) -> None:
        """Note the target of a relation; None = no rule names it."""

    def walk(self, frames: Sequence[bytes], start: int, run: Run, most_keys: int) -> int:
        """Take frames from `start` on into `run`; return the position of the first one that goes the long way."""
