"""`leasecache demo`, run as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from leasecache.lab import wait_until
from leasecache.lab.demo import tour
from leasecache.lab.demo.report import Step, show_step, show_table, to_json

WITHIN = 150.0  # s a tour may take on a machine that does other things too


@contextmanager
def demo(directory: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the demo with its output in files of `directory`; it is gone in the end."""
    command = [sys.executable, "-m", "leasecache", "demo", *options]
    environment = {**os.environ, "COLUMNS": "200"}
    with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_tour_holds_and_keeps_its_servers_until_interrupted(tmp_path: Path) -> None:
    """Every check of all nine steps holds; --keep tells how to reach the servers; ctrl-C ends them with status 0."""
    with demo(tmp_path, "--json", "--keep", "--postgres", "16") as process:
        kept = wait_until(lambda: _kept(tmp_path, process), WITHIN, "the end of the tour")
        report = json.loads((tmp_path / "out").read_text())
        failed = [check for step in report["steps"] for check in step["checks"] if not check["holds"]]
        assert (report["holds"], failed) == (True, [])
        assert [step["number"] for step in report["steps"]] == list(range(1, 10))
        figures = {measure["name"]: measure["value"] for step in report["steps"] for measure in step["measures"]}
        assert figures["loader calls with leases"] == 1
        assert figures["loader calls without leases"] >= 10  # as many as came within the first load, all 200 as a rule
        assert figures["old values left in the cache"] == 500
        assert figures["old values served from then on"] == 0
        with psycopg.connect(kept[0]) as connection:
            assert connection.execute("select count(*) from media").fetchone() == (20_000,)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(kept[0])


def _kept(directory: Path, process: "subprocess.Popen[bytes]") -> list[str] | None:
    text = (directory / "err").read_text()
    assert process.poll() is None, text
    return re.findall(r"postgresql://\S+", text) if "ctrl-C ends them" in text else None


def test_interrupt_while_seeding_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle ends with status 130, no traceback, and without servers or directories."""
    with demo(tmp_path) as process:
        directories = wait_until(lambda: _directories(process.pid), 60, "servers to run")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    wait_until(lambda: not any(directory.exists() for directory in directories), 60, "the directories to go")
    assert "Traceback" not in (tmp_path / "err").read_text()


def _directories(pid: int) -> list[Path]:
    """Return the working directories of the demo's servers, once there are two."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    mine = [line for line in listed.splitlines() if line.split()[0] == str(pid)]
    found = {Path(path) for line in mine for path in re.findall(r"(/\S*/leasecache-[0-9a-f]{12})/", line)}
    return sorted(found) if found else []


def _failed_step() -> Step:
    step = Step(4, "a stale set", "why")
    step.measure("ratio", 1.234)
    step.check("water is dry", False)
    step.check("water is wet", True)
    return step


def test_failed_check_fails_the_tour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One check that does not hold makes the whole tour fail, in the panels, the table and the JSON."""
    monkeypatch.setattr(tour, "STEPS", (lambda stage: _failed_step(),))
    monkeypatch.setattr(tour, "two_sites", _no_sites)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert tour.run(version=18, as_json=True, keep=False) is False
        shown: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert shown["holds"] is False
        assert tour.run(version=18, as_json=False, keep=False) is False
        assert "failed: step 4: water is dry" in capsys.readouterr().out
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _no_sites(version: int, progress: object) -> Iterator[None]:
    yield None


def test_report_marks_what_failed() -> None:
    """Panel and table show figures with their units, and a cross where a check failed."""
    console = Console(width=100, record=True, quiet=False, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with console.file:
        show_step(console, _failed_step())
        show_table(console, [_failed_step()])
    text = console.export_text()
    assert "✗ water is dry" in text
    assert "✓ water is wet" in text
    assert "1.23" in text
    assert to_json([_failed_step()])["steps"][0]["measures"] == [{"name": "ratio", "value": 1.234, "unit": ""}]
