"""The bench on real servers, quickly: every side is measured, and the figures are well-formed. No time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.bench import callee, crowd, herd, instructions
from loadtests.bench.member import Scenario
from loadtests.bench.row import Effort, Figure, Missing, Outcome, Role, Row, Side
from loadtests.bench.run import Run, calls
from loadtests.bench.site import Site
from loadtests.bench.slices import TIME, timed

ROOT = Path(__file__).parents[2]
QUICK = Effort(seconds=0.1, quick=True)


def test_quick_run(tmp_path: Path) -> None:
    """A quick run writes JSON in which every side has samples, or says that it is not installed."""
    written = tmp_path / "bench.json"
    rows = "P1,P1t,P2,P3,P4,P5,P6r,P7,P8"
    command = ["-m", "loadtests.bench", "--rows", rows, "--quick", "--seconds", "0.1", "--json", str(written)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())
    assert found["run"]["packages"]["pymemcache"]
    sections = rows.replace("P6r", "P6r,P6r,P6r,P6r").replace("P8", "P8,P8").split(",")
    assert [section["row"] for section in found["sections"]] == sections
    for section in found["sections"]:
        for line in section["lines"]:
            check(section, line)
    assert "leasecache" in done.stdout


def check(section: dict[str, Any], line: dict[str, Any]) -> None:
    """Hold one side against what a line must have; what comes with the project may not be missing."""
    where = f"{section['row']}, {line['side']}"
    if line["skipped"]:
        assert line["role"] == "rival", where
        assert line["missing"].startswith("not installed"), where
        return
    measured = line["measured"]
    assert line["missing"] is None, where
    assert measured["samples"] >= 1, where
    assert measured["least"] <= measured["low"] <= measured["median"] <= measured["high"] <= measured["most"], where
    assert (line["ratio"] is None) == (section["floor"] is None), where


def open_floor(site: Site) -> Run:
    """Do nothing, rightly."""
    return calls(lambda: site.value)


def open_wrong(site: Site) -> Run:
    """Do something else."""
    return calls(lambda: b"something else")


def open_absent(site: Site) -> Run:
    """Ask for a package that nobody has."""
    raise ModuleNotFoundError("No module named 'nobody_has_this'")


def open_breaking(site: Site) -> Run:
    """Work at first."""
    answers = iter([site.value] * 3)
    return calls(lambda: next(answers))


def is_value(site: Site, answer: object) -> bool:
    """Tell whether an answer is the value."""
    return answer == site.value


def row(measure: Any, **sides: Any) -> Row:
    """Return a row with a floor and these rivals."""
    named = [Side(name, Role.RIVAL, opened) for name, opened in sides.items()]
    return Row(
        name="P0",
        work="nothing",
        sides=(Side("floor", Role.FLOOR, open_floor), *named),
        figures=(Figure(name=TIME, unit="µs", floor="floor"),),
        measure=measure,
        right=is_value,
    )


def measured(row: Row) -> Outcome:
    """Measure a row quickly."""
    return row.measure(row, QUICK, lambda part: None)


def test_failing_sides_are_left_out() -> None:
    """A side with a wrong answer, or that breaks half-way, has no figures and says why; the others have theirs."""
    outcome = measured(row(timed, wrong=open_wrong, absent=open_absent, breaking=open_breaking))
    assert sorted(outcome.samples[TIME]) == ["floor", "floor, again"]
    assert outcome.missing["absent"] == Missing("not installed (No module named 'nobody_has_this')", skipped=True)
    assert outcome.missing["wrong"] == Missing("WrongAnswerError: a wrong answer: b'something else'")
    assert outcome.missing["breaking"].reason.startswith("StopIteration")
    assert [len(samples) for samples in outcome.samples[TIME].values()].count(0) == 0


def test_instructions_without_valgrind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without valgrind each side says so, and nothing is run."""
    monkeypatch.setattr(instructions, "VALGRIND", ("valgrind-of-nobody",))
    outcome = measured(row(instructions.counted))
    assert outcome.missing == {"floor": Missing("valgrind-of-nobody is not installed", skipped=True)}


VALGRIND = "import sys; count = int(sys.argv[-1]); print(f'==1== Collected : {5000 + 7 * count}')"
BROKEN_VALGRIND = "import sys; sys.exit('first line\\nlast line')"


def test_instructions_are_the_difference_of_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What start and end cost, 5000 here, is in no figure; a run that fails is a side that is missing."""
    monkeypatch.setattr(instructions, "VALGRIND", (sys.executable, "-c", VALGRIND))
    assert measured(row(instructions.counted)).samples == {instructions.INSTRUCTIONS: {"floor": [7.0]}}
    monkeypatch.setattr(instructions, "VALGRIND", (sys.executable, "-c", BROKEN_VALGRIND))
    assert measured(row(instructions.counted)).missing == {"floor": Missing("last line")}


def test_callee_works_and_checks() -> None:
    """What runs under valgrind does the work so many times, and says so when the answer is wrong."""
    right = f"{__name__}:is_value"
    assert callee.main([f"{__name__}:open_floor", right, "nowhere:1", "1", "3"]) is None
    assert "something else" in str(callee.main([f"{__name__}:open_wrong", right, "nowhere:1", "1", "3"]))
    assert "not installed" in str(callee.main([f"{__name__}:open_absent", right, "nowhere:1", "1", "3"]))


def open_absent_herd(site: Site, load: herd.Load) -> herd.Get:
    """Ask for a package that nobody has."""
    raise ModuleNotFoundError("No module named 'nobody_has_this'")


def open_deaf_herd(site: Site, load: herd.Load) -> herd.Get:
    """Serve the warm key, and nobody else."""
    return lambda name: load(name) if name.startswith("warm") else b"something else"


def open_deadly_herd(site: Site, load: herd.Load) -> herd.Get:
    """Serve the warm key, and end the process of whoever asks for another."""
    return lambda name: load(name) if name.startswith("warm") else os._exit(1)


def open_cold_herd(site: Site, load: herd.Load) -> herd.Get:
    """Do not even serve the warm key."""
    return lambda name: b"something else"


def test_herd_goes_on_after_sides_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that is not installed, gives wrong values or dies is left out with its reason; the others are measured."""
    monkeypatch.setattr(crowd, "PROCESSES", 2)
    monkeypatch.setattr(crowd, "CALLERS", 6)
    stampedes = herd.Stampedes(Scenario(load_for=0.01))
    outcome = measured(
        Row(
            name="P0",
            work="nothing",
            sides=tuple(
                Side(name, Role.RIVAL, opened)
                for name, opened in (
                    ("absent", open_absent_herd),
                    ("deaf", open_deaf_herd),
                    ("cold", open_cold_herd),
                    ("deadly", open_deadly_herd),
                    ("ours", herd.ours),
                    ("floor", herd.floor),
                )
            ),
            figures=tuple(Figure(name=name, unit="") for name in (herd.LOADS, herd.FAILED, herd.P50, herd.P99)),
            measure=stampedes,
        )
    )
    assert set(outcome.samples[herd.LOADS]) == {"ours", "floor"}
    assert set(outcome.samples[herd.LOADS]["floor"]) == {6.0}
    assert outcome.missing["absent"].skipped
    assert "nobody got the value" in outcome.missing["deaf"].reason
    assert "HerdError: another value of warm" in outcome.missing["cold"].reason
    assert "a process of the herd has died" in outcome.missing["deadly"].reason
