"""What the steps of the tour measured and checked, for people and for programs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Measure:
    """One figure."""

    name: str
    value: float | str
    unit: str = ""

    @property
    def shown(self) -> str:
        """Return the value and its unit for a person."""
        text = self.value if isinstance(self.value, str) else f"{self.value:,.{_decimals(self.value)}f}"
        return f"{text} {self.unit}".rstrip()


@dataclass(frozen=True)
class Check:
    """One statement that must hold, and whether it did."""

    statement: str
    holds: bool


@dataclass
class Step:
    """One step of the tour."""

    number: int
    title: str
    why: str
    measures: list[Measure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Tell whether every check held."""
        return all(check.holds for check in self.checks)

    def measure(self, name: str, value: float | str, unit: str = "") -> None:
        """Add a figure."""
        self.measures.append(Measure(name, value, unit))

    def check(self, statement: str, holds: bool) -> None:
        """Add a statement that must hold."""
        self.checks.append(Check(statement, holds))


def show_step(console: Console, step: Step) -> None:
    """Print a panel."""
    figures = Table.grid(padding=(0, 2))
    figures.add_column()
    figures.add_column(justify="right")
    for measure in step.measures:
        figures.add_row(measure.name, Text(measure.shown, style="bold"))
    checks = [Text.assemble(_mark(check.holds), " ", check.statement) for check in step.checks]
    body = Group(Text(step.why, style="italic"), Text(), figures, Text(), *checks)
    console.print(Panel(body, title=f"{step.number}. {step.title}", title_align="left", width=min(console.width, 100)))


def show_table(console: Console, steps: Iterable[Step]) -> None:
    """Print the table at the end."""
    table = Table("step", "figure", "value", "", title="two data centres")
    table.columns[2].justify = "right"
    for step in steps:
        for i, measure in enumerate(step.measures):
            first = i == 0
            label = f"{step.number}. {step.title}" if first else ""
            table.add_row(label, measure.name, measure.shown, _mark(step.holds) if first else "")
        table.add_section()
    console.print(table)


def to_json(steps: Iterable[Step]) -> dict[str, Any]:
    """Return everything as a JSON object."""
    listed = [{**asdict(step), "holds": step.holds} for step in steps]
    return {"holds": all(step["holds"] for step in listed), "steps": listed}


def _mark(holds: bool) -> Text:
    return Text("✓", style="green") if holds else Text("✗", style="bold red")


def _decimals(value: float) -> int:
    if isinstance(value, int) or value == int(value):
        return 0
    return 1 if abs(value) >= 10 else 2
