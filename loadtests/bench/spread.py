"""What many samples of one figure amount to: the median, and how far they spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of samples; the middle half of them lies from `low` to `high`."""

    samples: int
    median: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Summarise samples. Raises ValueError when there are none."""
        if not samples:
            raise ValueError("no samples")
        low, median, high = _quartiles(samples)
        return cls(len(samples), median, low, high, min(samples), max(samples))


def ratios(samples: Sequence[float], floor: Sequence[float]) -> list[float]:
    """Divide each sample by the floor's of the same round, which met the same weather."""
    return [sample / least for sample, least in zip(samples, floor, strict=True)]


def percentile(samples: Sequence[float], fraction: float) -> float:
    """Return the sample below which `fraction` of the others lie. Raises ValueError when there are none."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]


def _quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high
