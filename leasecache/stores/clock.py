"""What a memcached takes for now: a TTL beyond 30 days is a date to it, which it compares with this clock."""

import time
from typing import NamedTuple

KEPT = 60.0  # s an answer is believed


class Reading(NamedTuple):
    """What a server has said of its clock. Ours is only asked how long ago that was."""

    seconds: int  # since 1970, as the server believes
    taken: float  # monotonic s, after the answer: what is computed from it never lives too long
    epoch: int  # the latest connection when the question was sent

    def holds(self, epoch: int) -> bool:
        """Tell whether it is recent, and about the server behind a connection of this epoch.

        An older connection has not seen a restart since; behind a newer one there may be a server with another clock.
        """
        return epoch <= self.epoch and 0 <= time.monotonic() - self.taken < KEPT

    def now(self) -> int:
        """Return the server's time in s since 1970."""
        return self.seconds + int(time.monotonic() - self.taken)
