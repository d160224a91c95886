"""The command line of the bench: which rows, for how long, and what becomes of the figures.

Exit codes: 0 measured, whatever the figures are; 1 something could not be measured; 2 wrong use.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress

from leasecache.errors import LeasecacheError
from loadtests.bench import machine, report
from loadtests.bench.row import Effort, Row
from loadtests.bench.rows import ROWS
from loadtests.options import number

SECONDS, QUICK_SECONDS = 10.0, 0.3  # s per row
WIDTH = 130  # columns of the table at least; a pipe would have 80
MEASURED, NOT_MEASURED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure rows, print them, return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parse(given)
    effort = Effort(seconds=parsed.seconds, quick=parsed.quick, seed=parsed.seed)
    try:
        found = measure(parsed.rows, effort)
    except LeasecacheError as error:
        return fail(str(error), NOT_MEASURED)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    about = {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m loadtests.bench", *given]),
        "seconds": effort.seconds,
        "quick": effort.quick,
        "seed": effort.seed,
        **machine.description(),
    }
    show(found, about)
    if parsed.json:
        parsed.json.write_text(json.dumps(report.as_json(found, about), indent=2) + "\n")
    failed = report.faults(found)
    return fail(f"not measured: {', '.join(failed)}", NOT_MEASURED) if failed else MEASURED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; a wrong one ends the process."""
    parser = Parser(prog="bench", description="Compare leasecache with its floor and with its rivals.")
    names = ",".join(row.name for row in ROWS)
    parser.add_argument("--rows", type=chosen, default=ROWS, metavar="ROWS", help=f"such as P1,P3; all are {names}")
    parser.add_argument("--seconds", type=number(0.1, 3600), help=f"s per row, roughly ({SECONDS:g})")
    parser.add_argument("--quick", action="store_true", help="few and short samples: to see that it works")
    parser.add_argument("--seed", type=number(0, 2**32, int), default=1, help="of the value and of the turns (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parsed = parser.parse_args(arguments)
    if parsed.seconds is None:
        parsed.seconds = QUICK_SECONDS if parsed.quick else SECONDS
    return parsed


def chosen(text: str) -> tuple[Row, ...]:
    """Return the rows of these names, in their own order."""
    names = {name.strip().lower() for name in text.split(",")}
    unknown = names - {row.name.lower() for row in ROWS}
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        raise argparse.ArgumentTypeError(f"there is no row {sorted(unknown)[0]!r}; rows are {known}")
    return tuple(row for row in ROWS if row.name.lower() in names)


def measure(rows: Sequence[Row], effort: Effort) -> list[report.Section]:
    """Measure rows one after the other, with a progress bar on a terminal. Raises LeasecacheError."""
    found: list[report.Section] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(rows))
        for done, row in enumerate(rows):
            progress.update(task, description=f"{row.name} {row.work}")

            def tick(part: float, done: int = done) -> None:
                progress.update(task, completed=done + part)

            found += report.sections(row, row.measure(row, effort, tick))
    return found


def show(found: list[report.Section], about: dict[str, Any]) -> None:
    """Print the table, what it ran on, and notes."""
    console = Console()
    console = Console(width=max(console.width, WIDTH))
    for drawn in report.tables(found):
        console.print(drawn)
    console.print(
        f"Python {about['python']} ({about['implementation']}), memcached {about['memcached']}, "
        f"Redis {about['redis']}, {about['cpu']}, seed {about['seed']}; "
        f"the clock resolves {about['clock_ns']['resolution']:g} ns and is read in {about['clock_ns']['reading']:g} ns",
        highlight=False,
        soft_wrap=True,
    )
    for note in report.notes(found):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def fail(message: str, code: int) -> int:
    """Say in one line what is wrong, and return the exit code."""
    print(f"bench: {message}", file=sys.stderr)  # noqa: T201
    return code
