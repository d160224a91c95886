"""How long the loads of one function take: when a waiter looks first, and when it stops trusting a holder."""

from collections import deque

ENOUGH = 20  # observed loads before a holder may be robbed ahead of the end of its lease
SHORTEST = 1.0  # s a holder is given whatever the loads have taken
KEPT = 128  # loads that the 99th percentile is taken from


class LoadTime:
    """The decayed average and the 99th percentile of a function's load times in this process, in s."""

    __slots__ = ("_recent", "expected")

    def __init__(self) -> None:
        self.expected = 0.0  # s, 0 = nothing observed yet
        self._recent: deque[float] = deque(maxlen=KEPT)

    def observe(self, seconds: float) -> None:
        """Take in one load."""
        self.expected = seconds if not self._recent else 0.8 * self.expected + 0.2 * seconds
        self._recent.append(seconds)

    def patience(self, lease_for: float) -> float:
        """Return the s after which a holder is taken for dead: `lease_for`, or less once enough loads are known."""
        recent = sorted(self._recent)
        if len(recent) < ENOUGH:
            return lease_for
        return min(lease_for, max(3 * recent[(99 * len(recent) - 1) // 100], SHORTEST))
