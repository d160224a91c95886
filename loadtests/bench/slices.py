"""Time in µs: the sides take turns in short slices, in another order each round, so that all meet the same weather."""

import random
import time
from typing import Any

from loadtests.bench.row import Effort, Missing, Outcome, Role, Row, Side, Tick
from loadtests.bench.run import Run
from loadtests.bench.servers import Servers
from loadtests.bench.site import Site

TIME = "time"  # the figure
SLICE = 0.002  # s; shorter than a turn of whatever else runs on the CPU
LEAST_ROUNDS = 5
AGAIN = ", again"


class WrongAnswerError(Exception):
    """A side did something other than the work."""


def timed(row: Row, effort: Effort, tick: Tick, slice_for: float = SLICE) -> Outcome:
    """Measure the µs of one piece of work of each side; the floor is there twice, which shows the error."""
    outcome = Outcome()
    with Servers() as servers, Site(effort.seed, servers.address) as site:
        turns = _Turns(row, outcome, slice_for)
        for side in with_floor_again(row.sides):
            turns.open(side, site)
        servers.pin()
        turns.calibrate()
        turns.take(effort, tick)
    outcome.samples[TIME] = turns.samples
    return outcome


def with_floor_again(sides: tuple[Side, ...]) -> tuple[Side, ...]:
    """Add the floor a second time, right behind itself."""
    floors = [side for side in sides if side.role is Role.FLOOR]
    again = [Side(side.name + AGAIN, Role.AGAIN, side.open) for side in floors]
    return (*floors, *again, *(side for side in sides if side.role is not Role.FLOOR))


class _Turns:
    """The sides that work so far, how often each does so in a slice, and their samples."""

    def __init__(self, row: Row, outcome: Outcome, slice_for: float) -> None:
        self._row, self._outcome, self._slice_for = row, outcome, slice_for
        self._runs: dict[str, Run] = {}
        self._counts: dict[str, int] = {}
        self.samples: dict[str, list[float]] = {}

    def open(self, side: Side, site: Site) -> None:
        """Prepare a side, and see that its answer is right."""
        try:
            run: Run = side.open(site)
            check(self._row, site, run(1))
            self._runs[side.name] = run
        except Exception as error:
            self._outcome.missing[side.name] = missing(error)

    def calibrate(self) -> None:
        """Find out how much work of each side fills a slice."""
        for name in list(self._runs):
            count = 1
            while (took := self._time(name, count)) < self._slice_for / 4:
                count *= 2
            self._counts[name] = max(1, int(count * self._slice_for / took))

    def take(self, effort: Effort, tick: Tick) -> None:
        """Take turns until the time is over."""
        order = random.Random(effort.seed)
        began, rounds = time.monotonic(), 0
        while rounds < LEAST_ROUNDS or time.monotonic() < began + effort.seconds:
            names = list(self._runs)
            order.shuffle(names)
            for name in names:
                self._slice(name)
            rounds += 1
            tick(min(rounds / LEAST_ROUNDS, (time.monotonic() - began) / effort.seconds, 1))

    def _slice(self, name: str) -> None:
        count = self._counts[name]
        took = self._time(name, count)
        if name in self._runs:
            self.samples.setdefault(name, []).append(took / count / self._row.per * 1e6)

    def _time(self, name: str, count: int) -> float:
        """Return the s that so much work took; a side that fails is out, and its samples with it."""
        try:
            began = time.perf_counter()
            self._runs[name](count)
            return time.perf_counter() - began
        except Exception as error:
            self._outcome.missing[name] = missing(error)
            del self._runs[name]
            self.samples.pop(name, None)
            return float("inf")


def check(row: Row, site: Site, answer: Any) -> None:
    """Hold an answer against what was asked for. Raises WrongAnswerError."""
    if not row.right(site, answer):
        raise WrongAnswerError(f"a wrong answer: {answer!r:.60}")


def missing(error: Exception) -> Missing:
    """Say in one line why a side has no figures."""
    if isinstance(error, ImportError):
        return Missing(f"not installed ({error})", skipped=True)
    return Missing(" ".join(f"{type(error).__name__}: {error}".split()))
