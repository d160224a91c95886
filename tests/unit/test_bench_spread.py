"""What the bench makes of its samples: spreads, ratios to the floor, goals."""

import pytest

from loadtests.bench.row import Goal
from loadtests.bench.spread import Spread, percentile, ratios


def test_spread_of_samples() -> None:
    """Median and quartiles do not mind one sample that is far off."""
    spread = Spread.of([3.0, 1.0, 2.0, 5.0, 1000.0])
    assert (spread.samples, spread.least, spread.low, spread.median, spread.high, spread.most) == (5, 1, 2, 3, 5, 1000)


def test_spread_of_one_sample() -> None:
    """A count that is taken once has no spread."""
    assert Spread.of([7.0]) == Spread(1, 7, 7, 7, 7, 7)


def test_spread_of_nothing() -> None:
    """No samples are no figure."""
    with pytest.raises(ValueError, match="no samples"):
        Spread.of([])
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which everything took twice as long has the same ratio; the ratio of the medians would not."""
    floor, side = [1.0, 2.0, 2.0, 9.0], [1.5, 3.0, 3.0, 13.5]
    assert ratios(side, floor) == [1.5] * 4
    with pytest.raises(ValueError, match="zip"):
        ratios(side, floor[:3])


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 1), (0.5, 51), (0.99, 100), (1.0, 100)])
def test_percentile(fraction: float, expected: int) -> None:
    """The p99 of a hundred samples is the greatest."""
    assert percentile(range(100, 0, -1), fraction) == expected


SAMPLES = {"leasecache": [1.0, 2.0, 3.0], "floor": [1.0, 1.0, 1.0], "a": [2.0, 2.0, 2.0], "b": [4.0, 4.0, 4.0]}


@pytest.mark.parametrize(
    ("goal", "text", "value"),
    [
        (Goal(at_most=1.05, of=("floor",)), "≤ 1.05 × floor", 2.0),
        (Goal(at_most=0.5, of=("a", "b")), "≤ 0.5 × the best rival", 1.0),
        (Goal(at_most=1), "≤ 1 µs", 2.0),
        (Goal(at_most=1, worst=True), "≤ 1 µs", 3.0),
        (Goal(at_most=20, over="floor"), "≤ floor + 20 µs", 1.0),
        (Goal(at_most=1, of=("absent",)), "≤ 1 × absent", None),
        (Goal(at_most=1, over="absent"), "≤ absent + 1 µs", None),
        (Goal(at_most=1, side="absent"), "≤ 1 µs", None),
        (Goal(at_most=0.5, of=("a", "absent")), "≤ 0.5 × the best rival", 1.0),
    ],
)
def test_goal(goal: Goal, text: str, value: float | None) -> None:
    """A goal compares with a side, with the best of several, or with nothing; what was not measured has no value."""
    assert (goal.text("µs"), goal.value(SAMPLES)) == (text, value)
