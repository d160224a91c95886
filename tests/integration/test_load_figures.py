"""How long loads took, in batches too: each load once, from its own beginning."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def loaded(function: Any) -> tuple[int, float]:
    """Return how many loads of a function have been counted, and what they took in s."""
    histogram = function._self_core.stats.loaded
    return sum(histogram.counts), histogram.total


def test_load_of_a_batch_is_counted_once(cache: Any) -> None:
    """Thirty keys of one load are one observation; guard: `measured` around `LoadAll`."""

    @cache.cached_many("user:{n}", ttl=60)
    def users(n: Sequence[int]) -> Mapping[int, int]:
        time.sleep(0.05)
        return {each: each for each in n}

    users(range(30))
    assert loaded(users)[0] == 1
    assert users._self_core._load_time.patience(10) == 10, "not twenty loads"
    users.lookup(31)
    assert loaded(users)[0] == 2


def test_loads_of_a_batch_that_waited_for_their_turn(cache: Any) -> None:
    """What a key waits for the loads before its own is no load time; guard: `measured` around `Load`."""

    took: list[float] = []

    @cache.cached("item:{n}", ttl=60)
    def item(n: int) -> int:
        began = time.monotonic()
        time.sleep(0.01)
        took.append(time.monotonic() - began)
        return n

    item.get_many(range(64))
    count, seconds = loaded(item)
    assert count == 64
    assert sum(took) <= seconds < 2.5 * sum(took)


def test_loads_that_fail_are_counted_once(cache: Any) -> None:
    """A batch that raises is one load that failed, as is one that returns no mapping, and a single one."""

    @cache.cached_many("user:{n}", ttl=60)
    def users(n: Sequence[int]) -> Mapping[int, int]:
        if 0 in n:
            raise KeyError(n)
        return list(n)  # type: ignore[return-value]

    for call, error in (
        (lambda: users([0, 1, 2]), KeyError),
        (lambda: users([1, 2]), TypeError),
        (lambda: users.lookup(0), KeyError),
    ):
        with pytest.raises(error):
            call()
    assert (users._self_core.stats.failed, loaded(users)[0]) == (3, 0)
