"""A row of the bench: the work, the sides that do it, the floor they are divided by, and what is to be reached."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from loadtests.bench.site import Site
from loadtests.bench.spread import Spread, ratios

Samples = Mapping[str, Sequence[float]]  # side → one sample per round
Tick = Callable[[float], None]  # told which fraction of a row is done


OURS = "leasecache"  # the side that goals are about


class Role(Enum):
    """What a side is there for."""

    FLOOR = "floor"
    AGAIN = "floor again"  # the floor against itself: what the error of a ratio is
    OURS = "ours"
    RIVAL = "rival"


@dataclass(frozen=True)
class Side:
    """One way to do the work of a row. `open` prepares it at a site; ImportError means that it is not installed."""

    name: str
    role: Role
    open: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure of `side`, divided by the best of `of` or less that of `over`, is to be at most `at_most`."""

    at_most: float
    of: tuple[str, ...] = ()
    over: str | None = None
    side: str = OURS
    worst: bool = False  # every sample is to reach it, not the median alone

    def text(self, unit: str) -> str:
        """Say it, such as "≤ 1.05 × raw socket"."""
        if self.of:
            return f"≤ {self.at_most:g} × {self.of[0] if len(self.of) == 1 else 'the best rival'}"
        return f"≤ {self.over + ' + ' if self.over else ''}{self.at_most:g} {unit}".rstrip()

    def value(self, samples: Samples) -> float | None:
        """Return what was reached, or None when one of the sides was not measured."""
        own, over = samples.get(self.side), samples.get(self.over or "")
        others = [samples[name] for name in self.of if name in samples]
        if own is None or (self.of and not others) or (self.over and over is None):
            return None
        beyond = [sample - least for sample, least in zip(own, over, strict=True)] if over else own
        found = [Spread.of(ratios(own, other)) for other in others] or [Spread.of(beyond)]
        return max(spread.most if self.worst else spread.median for spread in found)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing that a row measures of each side."""

    name: str
    unit: str
    floor: str | None = None  # the side that the others are divided by
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how thoroughly a row is measured."""

    seconds: float = 10.0  # s per row, roughly
    quick: bool = False  # fewer and shorter samples: to see that it works, not to quote
    seed: int = 1  # of the value and of the order in which sides take turns


@dataclass(frozen=True)
class Missing:
    """Why a side has no figures. What is not installed is skipped; anything else is a fault."""

    reason: str
    skipped: bool = False


@dataclass
class Outcome:
    """What a row has measured: figure → side → samples."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missing: dict[str, Missing] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # side → what a reader should know of its figures


def _right(site: Site, answer: Any) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the design: `measure` samples `figures` of each of `sides`."""

    name: str
    work: str
    sides: tuple[Side, ...]
    figures: tuple[Figure, ...]
    measure: Callable[["Row", Effort, Tick], Outcome]
    right: Callable[[Site, Any], bool] = _right  # whether a side's answer is the one that was asked for
    per: int = 1  # how many of what is counted one piece of work does

    def side(self, name: str) -> Side:
        """Return the side of this name. Raises KeyError."""
        return {side.name: side for side in self.sides}[name]

    @property
    def rivals(self) -> tuple[str, ...]:
        """The names of the rivals."""
        return tuple(side.name for side in self.sides if side.role is Role.RIVAL)
