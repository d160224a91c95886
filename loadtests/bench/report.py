"""What a run has found: summarised, judged, as a table for people and as JSON for programs."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any

from rich.table import Table

from loadtests.bench.row import Figure, Outcome, Role, Row
from loadtests.bench.spread import Spread, ratios


@dataclass(frozen=True, kw_only=True)
class Line:
    """One side of one figure."""

    side: str
    role: str
    measured: Spread | None = None
    ratio: Spread | None = None  # to the floor, round by round
    missing: str | None = None
    skipped: bool = False  # what it needs is not installed
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A goal and what was reached; None when it was not measured."""

    goal: str
    value: float | None
    met: bool | None


@dataclass(frozen=True, kw_only=True)
class Section:
    """One figure of a row."""

    row: str
    work: str
    figure: str
    unit: str
    floor: str | None
    lines: tuple[Line, ...]
    verdicts: tuple[Verdict, ...]


def sections(row: Row, outcome: Outcome) -> list[Section]:
    """Summarise what a row has measured."""
    return [_section(row, figure, outcome) for figure in row.figures]


def faults(found: Sequence[Section]) -> list[str]:
    """Name what could not be measured; what is not installed is no fault, nor is any figure."""
    lines = [(section.row, line) for section in found for line in section.lines]
    return list(dict.fromkeys(f"{row} {line.side}" for row, line in lines if line.missing and not line.skipped))


def as_json(found: Sequence[Section], run: dict[str, Any]) -> dict[str, Any]:
    """Return the run and its sections as JSON takes them."""
    return {"run": run, "sections": [dataclasses.asdict(section) for section in found]}


def tables(found: Sequence[Section]) -> Iterator[Table]:
    """Draw each row as a table: sides downwards, figures across, with the middle half of the samples in brackets."""
    for _, of_row in groupby(found, key=lambda section: section.row):
        yield _table(list(of_row))


def notes(found: Sequence[Section]) -> list[str]:
    """Return what a reader should know beside the figures, once each: what was left out, what went wrong."""
    remarks = [(section.row, line, line.missing or line.note) for section in found for line in section.lines]
    return list(dict.fromkeys(f"{row}, {line.side}: {remark}" for row, line, remark in remarks if remark))


def _section(row: Row, figure: Figure, outcome: Outcome) -> Section:
    samples = outcome.samples.get(figure.name, {})
    floor = samples.get(figure.floor or "")
    lines = [
        Line(
            side=side,
            role=role.value,
            measured=Spread.of(samples[side]) if side in samples else None,
            ratio=Spread.of(ratios(samples[side], floor)) if side in samples and floor else None,
            missing=outcome.missing[side].reason if side in outcome.missing else None,
            skipped=side in outcome.missing and outcome.missing[side].skipped,
            note=outcome.notes.get(side),
        )
        for side, role in _sides(row, outcome)
    ]
    verdicts = []
    for goal in figure.goals:
        value = goal.value(samples)
        met = None if value is None else value <= goal.at_most
        verdicts.append(Verdict(goal=goal.text(figure.unit), value=value, met=met))
    return Section(
        row=row.name,
        work=row.work,
        figure=figure.name,
        unit=figure.unit,
        floor=figure.floor,
        lines=tuple(lines),
        verdicts=tuple(verdicts),
    )


def _sides(row: Row, outcome: Outcome) -> list[tuple[str, Role]]:
    """Return the sides in the row's order, and what was measured beside them after the floors."""
    known = {side.name: side.role for side in row.sides}
    extra = {name for samples in outcome.samples.values() for name in samples} | set(outcome.missing)
    again = [(name, Role.AGAIN) for name in sorted(extra - set(known))]
    floors = [(name, role) for name, role in known.items() if role is Role.FLOOR]
    return [*floors, *again, *((name, role) for name, role in known.items() if role is not Role.FLOOR)]


def _table(sections: list[Section]) -> Table:
    first = sections[0]
    drawn = Table(title=f"{first.row}  {first.work}", title_justify="left", title_style="bold")
    drawn.add_column("side")
    for section in sections:
        unit = f", {section.unit}" if section.unit else ""
        drawn.add_column(section.figure + unit, justify="right")
        if section.floor:
            drawn.add_column("× floor", justify="right")
    for heading in ("to reach", "reached", ""):
        drawn.add_column(heading, justify="right" if heading == "reached" else "left")
    sides = [_cells(sections, number) for number in range(len(first.lines))]
    goals = [_judged(section, verdict) for section in sections for verdict in section.verdicts]
    blank = [""] * (len(drawn.columns) - 3)
    for cells, judged in zip_longest(sides, goals):
        drawn.add_row(*(cells or blank), *(judged or ()))
    return drawn


def _cells(sections: list[Section], number: int) -> list[str]:
    line = sections[0].lines[number]
    cells = [f"[green]{line.side}" if line.role == Role.OURS.value else line.side]
    for section in sections:
        line = section.lines[number]
        cells.append(_spread(line.measured) if line.measured else "[yellow]–")
        if section.floor:
            cells.append(_spread(line.ratio) if line.ratio else "")
    return cells


def _judged(section: Section, verdict: Verdict) -> list[str]:
    goal = f"{section.figure} {verdict.goal}"
    if verdict.value is None:
        return [goal, "", "[yellow]not measured"]
    return [goal, _number(verdict.value), "[green]met" if verdict.met else "[red]not met"]


def _spread(spread: Spread) -> str:
    if spread.samples == 1 or spread.low == spread.high:
        return _number(spread.median)
    return f"{_number(spread.median)} [{_number(spread.low)}–{_number(spread.high)}]".replace("[", "\\[")


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) < 100 else f"{value:.0f}"
