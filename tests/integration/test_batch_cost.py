"""What a batch costs beside its loads: as much for each key, however many there are."""

import sys
from collections.abc import Callable
from typing import Any

from leasecache import Cache


def steps(call: Callable[[], Any]) -> int:
    """Count the calls of functions, those written in C too, that `call()` makes."""
    counted = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counted


def test_a_cold_batch_costs_as_much_for_each_key(sync_cache: Cache) -> None:
    """Ten times the keys are ten times the work; the guard is `_Batch._asked`, which finds the next load at once."""

    @sync_cache.cached("item:{n}", ttl=60)
    def item(n: int) -> int:
        return n

    item.get_many(range(1000, 1010))
    few = steps(lambda: item.get_many(range(50)))
    many = steps(lambda: item.get_many(range(2000, 2500)))
    assert many < 15 * few
