"""What was a moment ago, in bounded memory: rates, lags of the last minutes, the last errors. Time is handed in."""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 10  # s over which rates are taken
SPAN, STEP = 900, 5  # s: the chart shows the last SPAN in steps
TROUBLES = 20
_TEXT = 500  # characters of a trouble that are kept
_MARKS = 1024
_MARK_EVERY = 0.005  # s


class Meter:
    """How much per second, over the last WINDOW seconds."""

    __slots__ = ("_bins", "total")

    def __init__(self) -> None:
        self.total = 0
        self._bins = [(0, 0)] * (WINDOW + 1)  # (second, amount), one for the second that is not over

    def add(self, amount: int, now: float) -> None:
        """Count `amount` at `now` (monotonic s)."""
        second = int(now)
        self.total += amount
        known, before = self._bins[second % (WINDOW + 1)]
        self._bins[second % (WINDOW + 1)] = (second, amount + (before if known == second else 0))

    def rate(self, now: float) -> float:
        """Return the amount per second over the last WINDOW whole seconds."""
        second = int(now)
        return sum(amount for at, amount in self._bins if second - WINDOW <= at < second) / WINDOW


class Step(NamedTuple):
    """The worst of one step of the chart."""

    began: float  # Unix s
    lag_bytes: int
    lag_seconds: float


class Chart:
    """The lag of the last SPAN seconds."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque(maxlen=SPAN // STEP)

    def note(self, at: float, lag_bytes: int, lag_seconds: float) -> None:
        """Note a lag at `at` (Unix s); a step keeps its worst."""
        began = at - at % STEP
        last = self._steps[-1] if self._steps else None
        if last is None or last.began < began:
            self._steps.append(Step(began, lag_bytes, lag_seconds))
        elif lag_bytes > last.lag_bytes or lag_seconds > last.lag_seconds:
            self._steps[-1] = Step(last.began, max(lag_bytes, last.lag_bytes), max(lag_seconds, last.lag_seconds))

    def steps(self, at: float) -> list[Step]:
        """Return what is known of the last SPAN seconds before `at`."""
        return [step for step in list(self._steps) if step.began > at - SPAN]


class Lag:
    """How long W has been behind: since when the oldest position that it has not passed has been there."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()  # (position received, when)
        self._highest = 0

    def note(self, received: int, acknowledged: int, now: float) -> None:
        """Note how far things are at `now` (monotonic s)."""
        marks = self._marks
        if received < self._highest:  # another timeline
            marks.clear()
            self._highest = 0
        if received > self._highest and (not marks or now - marks[-1][1] >= _MARK_EVERY):
            marks.append((received, now))
            self._highest = received
        while marks and marks[0][0] <= acknowledged:
            marks.popleft()
        if len(marks) > _MARKS:
            self._marks = deque(list(marks)[::2])  # the oldest stays

    def seconds(self, now: float) -> float:
        """Return how long W has been behind, 0 when it is not."""
        try:
            return max(0.0, now - self._marks[0][1])
        except IndexError:
            return 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that went wrong, and how often in a row."""

    at: float  # Unix s, of the last time
    event: str
    text: str
    times: int


class Troubles:
    """The last TROUBLES things that went wrong."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], Trouble] = {}  # the latest last

    def note(self, at: float, event: str, text: str, of: str | None = None) -> None:
        """Note a trouble at `at` (Unix s); another one with this event and text, or `of` the same, counts there."""
        name = event, text[:_TEXT] if of is None else of
        known = self._last.pop(name, None)
        self._last[name] = Trouble(at, event, text[:_TEXT], times=1 if known is None else known.times + 1)
        if len(self._last) > TROUBLES:
            del self._last[next(iter(self._last))]

    def latest(self) -> list[Trouble]:
        """Return the troubles, the latest first."""
        return list(self._last.values())[::-1]
