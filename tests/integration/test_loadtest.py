"""The load test itself: what it counts, what it lets pass and what it does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests import herd
from loadtests.report import Report
from loadtests.tally import Tally

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENT = HERE / "locustfile_patient.py"


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )


def test_herd_with_leases_loads_once_for_every_invalidation(capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred users on one key that is invalidated twice a second: one load each time, and nothing stale."""
    code = herd.main(["--duration", "6", "--invalidate-every", "0.5", "--json"], locustfile=PATIENT)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    seen = Report(**json.loads(printed.out))
    assert seen.invalidations > 2
    assert seen.requests > 100
    assert (seen.cold_loads, seen.most_loads, seen.failures, seen.stale_served) == (1, 1, 0, 0)


def test_herd_without_leases_loads_many_times(capsys: pytest.CaptureFixture[str]) -> None:
    """The same users on plain get and set load many times for one invalidation, which is shown and no failure."""
    assert herd.main(["--duration", "5", "--invalidate-every", "0.5", "--without-leases"], locustfile=PATIENT) == 0
    rows = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    figures = {figure.strip(): value.strip() for figure, value in rows}
    assert int(figures["most for one invalidation"]) > 1
    assert int(figures["invalidations"]) > 0
    assert figures["failures"] == "0"


def test_herd_fails_when_leases_do_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """On a cache that stores nothing every caller loads: exit code 1, and one line that says so."""
    arguments = ["--users", "20", "--duration", "5", "--invalidate-every", "0.5", "--json"]
    assert herd.main(arguments, locustfile=HERE / "locustfile_refusing.py") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["most_loads"] > 1
    assert "loads for one invalidation" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--users", "0"], "--users: '0' is not a whole number from 1 to 1000"),
        (["--users", "1.5"], "'1.5' is not a whole number"),
        (["--duration", "long"], "--duration: 'long' is not a whole number"),
        (["--stale-for", "-1"], "--stale-for: '-1' is not a number from 0 to 3600"),
        (["--loader-ms", "nan"], "--loader-ms: 'nan' is not a number"),
        (["--duration", "5", "--invalidate-every", "5"], "nothing would be invalidated"),
        (["--leases"], "unrecognized arguments: --leases"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be run is refused in one line that names the option, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        herd.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_calls_are_requests_of_locust() -> None:
    """Locust's statistics have each call, failed ones as failures; a fault of the test is reported apart from them."""
    file = str(HERE / "locustfile_failing.py")
    done = python("-m", "locust", "-f", file, "--headless", "--users=1", "--run-time=60s", "--host=memory://", "--json")
    [entry] = json.loads(done.stdout)
    assert (entry["method"], entry["name"]) == ("CACHE", "get_half")
    assert 0 < entry["num_failures"] < entry["num_requests"]
    assert "ZeroDivisionError: a fault of the test" in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_load_counts_for_the_interval_in_which_it_began() -> None:
    """Loads after an invalidation count for it, the first ones for the cold key."""
    tally = Tally()
    tally.load_began()
    with tally.invalidating(7):
        pass
    tally.load_began()
    tally.load_began()
    assert (tally.loads, tally.invalidations, tally.version) == ([1, 2], 1, 7)


def test_load_amid_an_invalidation_counts_for_the_interval_without_one() -> None:
    """While an invalidation is on its way, a load may have come before it, but one load at most."""
    tally = Tally()
    with tally.invalidating(1):
        tally.load_began()
        tally.load_began()
    assert tally.loads == [1, 1]


def test_answer_is_stale_when_older_than_an_acknowledged_invalidation() -> None:
    """What the cache has not acknowledged yet is due from nobody, nor what it was asked for and refused."""
    tally = Tally()
    with pytest.raises(ConnectionError), tally.invalidating(1):
        raise ConnectionError
    tally.answered(0, tally.version)
    with tally.invalidating(2):
        tally.answered(0, tally.version)
    tally.answered(2, tally.version)
    assert tally.stale == 0
    tally.answered(1, tally.version)
    assert tally.stale == 1


FIGURES: dict[str, Any] = dict.fromkeys(Report.__dataclass_fields__, 0)
GOOD = Report(
    **{**FIGURES, "leases": True, "invalidations": 2, "cold_loads": 1, "loads": 2, "most_loads": 1, "requests": 9}
)


@pytest.mark.parametrize(
    ("changed", "faults"),
    [
        ({}, []),
        ({"most_loads": 3}, ["3 loads for one invalidation"]),
        ({"cold_loads": 2}, ["2 loads for one invalidation"]),
        ({"failures": 4}, ["4 calls failed"]),
        ({"stale_served": 5}, ["5 stale answers, and none is allowed"]),
        ({"stale_served": 5, "stale_for": 1}, []),
        ({"most_loads": 3, "leases": False}, []),
        ({"requests": 0, "leases": False}, ["nothing was measured"]),
    ],
)
def test_report_judges(changed: dict[str, Any], faults: list[str]) -> None:
    """More than one load, failures and forbidden stale answers are faults, and so is a run that saw nothing."""
    assert Report(**{**vars(GOOD), **changed}).faults() == faults
