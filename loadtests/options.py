"""The options of the herd, on its own command line and on locust's."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Options:
    """What happens to the hot key."""

    invalidate_every: float = 1.0  # s
    loader_ms: float = 50.0
    stale_for: float = 0.0  # s
    without_leases: bool = False

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> "Options":
        """Pick them out of a parsed command line."""
        return cls(**{name: getattr(parsed, name) for name in cls.__dataclass_fields__})

    def arguments(self) -> list[str]:
        """Return the command line that gives these options."""
        given = [f"--{name.replace('_', '-')}={getattr(self, name)}" for name in _NUMBERS]
        return given + ["--without-leases"] * self.without_leases


def number(least: float, most: float, kind: type[int] | type[float] = float) -> Callable[[str], float]:
    """Return an argparse type that takes a number from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            parsed = kind(text)
        except ValueError:
            parsed = math.nan
        if not least <= parsed <= most:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a {whole}number from {least:g} to {most:g}")
        return parsed

    return parse


_NUMBERS = {
    "invalidate_every": (number(0.1, 3600), "s between two invalidations"),
    "loader_ms": (number(0, 10_000), "ms that a load takes"),
    "stale_for": (number(0, 3600), "s a value may be served after its invalidation"),
}


def add_arguments(parser: Any) -> None:
    """Add the options to a parser of argparse, or to that of locust."""
    for name, (kind, text) in _NUMBERS.items():
        default = Options.__dataclass_fields__[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{text} ({default:g})")
    text = "get, load and set by pymemcache instead: what a herd does without leases"
    parser.add_argument("--without-leases", action="store_true", help=text)
