"""How long things take, in µs: sides interleaved in short slices, the median of many."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

SLICES = 31


@contextmanager
def on_one_cpu(pid: int) -> Iterator[None]:
    """Keep this thread and a server on one CPU meanwhile, where the system allows it.

    Waking the other one's CPU takes longer than the work that is measured, and not always equally long.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    threads = [0, *(int(thread) for thread in os.listdir(f"/proc/{pid}/task"))]
    _allow(threads, {min(allowed)})
    try:
        yield
    finally:
        _allow(threads, allowed)


def _allow(threads: list[int], cpus: set[int]) -> None:
    for thread in threads:
        os.sched_setaffinity(thread, cpus)


def interleaved(calls: Mapping[str, Callable[[], object]], per_slice: int) -> dict[str, float]:
    """Return the median µs of one call of each; all take turns, so that a busy machine is busy for all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SLICES):
        for name, call in calls.items():
            times[name].append(_slice(call, per_slice))
    return {name: statistics.median(of) for name, of in times.items()}


def percentile(values: list[float], fraction: float) -> float:
    """Return the value below which `fraction` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def _slice(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count * 1e6
