"""What the bench says: sections, faults, the table, the command line."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtests.bench import command, report
from loadtests.bench.row import Effort, Figure, Goal, Missing, Outcome, Role, Row, Side, Tick
from loadtests.bench.rows import ROWS
from loadtests.bench.site import MissedError, Site


def open_nothing(site: Site) -> None:
    """Stand in for what prepares a side."""


def invented(outcome: Outcome) -> Row:
    """Return a row that has measured this."""

    def measure(row: Row, effort: Effort, tick: Tick) -> Outcome:
        tick(1.0)
        return outcome

    return Row(
        name="P0",
        work="nothing",
        sides=tuple(
            Side(name, role, open_nothing)
            for name, role in (("floor", Role.FLOOR), ("leasecache", Role.OURS), ("rival", Role.RIVAL))
        ),
        figures=(Figure(name="time", unit="µs", floor="floor", goals=(Goal(at_most=2, of=("rival",)),)),),
        measure=measure,
    )


MEASURED = Outcome(samples={"time": {"floor": [1.0, 1.0], "leasecache": [2.0, 2.0], "rival": [4.0, 4.0]}})


def test_section_has_every_side() -> None:
    """Each side has its spread and its ratio to the floor, and each goal its verdict."""
    [section] = report.sections(invented(MEASURED), MEASURED)
    assert [(line.side, line.ratio and line.ratio.median) for line in section.lines] == [
        ("floor", 1.0),
        ("leasecache", 2.0),
        ("rival", 4.0),
    ]
    assert [(v.goal, v.value, v.met) for v in section.verdicts] == [("≤ 2 × rival", 0.5, True)]
    assert report.faults([section]) == []


@pytest.mark.parametrize(("skipped", "faults"), [(True, []), (False, ["P0 rival"])])
def test_missing_side_is_named(skipped: bool, faults: list[str]) -> None:
    """What is not installed is said and no fault; what failed is one; the goal is then neither met nor missed."""
    samples = {"time": {"floor": [1.0], "leasecache": [2.0]}}
    outcome = Outcome(samples=samples, missing={"rival": Missing("why", skipped)}, notes={"leasecache": "a note"})
    found = report.sections(invented(outcome), outcome)
    assert report.faults(found) == faults
    assert found[0].verdicts[0].met is None
    assert report.notes(found) == ["P0, leasecache: a note", "P0, rival: why"]


def test_table_shows_sides_and_goals() -> None:
    """The table has a line for each side, with the ratio beside the time, and the verdict."""
    console = Console(width=120)
    with console.capture() as captured:
        for table in report.tables(report.sections(invented(MEASURED), MEASURED)):
            console.print(table)
    lines = captured.get().splitlines()
    assert any("leasecache" in line and "2" in line for line in lines)
    assert any("time ≤ 2 × rival" in line and "0.500" in line and "met" in line for line in lines)


def test_command_measures_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that misses its goals succeeds; one in which a side failed is exit code 1 and one line."""
    slow = Outcome(samples={"time": {"floor": [1.0], "leasecache": [9.0], "rival": [1.0]}})
    monkeypatch.setattr(command, "ROWS", (invented(slow),))
    assert command.main(["--rows", "p0", "--json", str(tmp_path / "found.json")]) == 0
    assert "not met" in capsys.readouterr().out
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["run"]["seed"] == 1
    assert written["sections"][0]["verdicts"][0] == {"goal": "≤ 2 × rival", "value": 9.0, "met": False}
    failed = Outcome(samples={"time": {}}, missing={"leasecache": Missing("it broke")})
    monkeypatch.setattr(command, "ROWS", (invented(failed),))
    assert command.main(["--rows", "P0"]) == 1
    printed = capsys.readouterr()
    assert "P0, leasecache: it broke" in printed.out
    assert printed.err == "bench: not measured: P0 leasecache\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "P1,P99"], "there is no row 'p99'; rows are P1, P1t"),
        (["--seconds", "0"], "--seconds: '0' is not a number from 0.1 to 3600"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be run is refused in one line that names the option, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_rows_are_consistent() -> None:
    """Names are unique, and every floor and goal names a side of its row."""
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        sides = {side.name for side in row.sides}
        named = {name for figure in row.figures for goal in figure.goals for name in (*goal.of, goal.side, goal.over)}
        assert named | {figure.floor for figure in row.figures} <= sides | {None}, row.name


def test_second_load_is_an_error() -> None:
    """A side that misses where hits are measured does not pass for a slow one."""
    with Site(1, str) as site:
        load = site.loader(times=2)
        assert load() == load() == site.value
        with pytest.raises(MissedError):
            load()
