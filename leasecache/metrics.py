"""What happened to the calls of one cached function: counters and time histograms, kept where they happen."""

from bisect import bisect_left

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # s


class Histogram:
    """Counts durations in buckets: `counts[i]` are those of at most `BOUNDS[i]` s, the last those above all bounds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0  # s

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class FunctionStats:
    """One function's counters since the process started; exact within one thread, and nearly so among several."""

    __slots__ = (
        "failed",
        "hits",
        "loaded",
        "misread",
        "misses",
        "refused",
        "stale",
        "stolen",
        "unleased",
        "waited",
        "won",
    )

    def __init__(self) -> None:
        self.hits = 0  # calls answered by a fresh value at once
        self.stale = 0  # calls answered by a stale value at once
        self.misses = 0  # calls that found neither
        self.won = 0  # leases won, those to refresh a value in hand too
        self.stolen = 0  # leases taken from a holder that took too long
        self.refused = 0  # lease-sets that the store refused: the value may be older than an invalidation, or too large
        self.unleased = 0  # loads without a lease: node down, waited too long, value that cannot be stored
        self.misread = 0  # stored values of another type or version, dropped
        self.failed = 0  # loads that raised
        self.waited = Histogram()  # s that calls waited for somebody else's load
        self.loaded = Histogram()  # s that loads took
