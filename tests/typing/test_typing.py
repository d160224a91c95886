"""What an application's type checker says of decorated functions: exact types, and wrong uses reported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SAMPLES = sorted(HERE.glob("*sample.py"))
Check = Callable[[Path, Path], dict[int, str]]


def mypy(sample: Path, scratch: Path) -> dict[int, str]:
    """Run mypy --strict; return line → message of the errors in the sample."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", "--output=json"]
    where = ["--python-version=3.10", f"--cache-dir={scratch}", sample.name]
    found = run([*command, *where], {"MYPYPATH": str(ROOT)})
    reports = [json.loads(line) for line in found.splitlines()]
    return {report["line"]: report["message"] for report in reports if report["severity"] == "error"}


def pyright(sample: Path, scratch: Path) -> dict[int, str]:
    """Run pyright in strict mode; return the same, its lines counted from 1."""
    config = scratch / "pyrightconfig.json"
    settings = {"include": [os.path.relpath(sample, scratch)], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    config.write_text(json.dumps({**settings, "pythonVersion": "3.10"}))
    command = [sys.executable, "-m", "pyright", "--project", str(config), "--pythonpath", sys.executable]
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # it would ask PyPI for a newer one
    found = json.loads(run([*command, "--outputjson"], quiet))
    assert found["summary"]["filesAnalyzed"] == 1
    reports = [report for report in found["generalDiagnostics"] if report["severity"] == "error"]
    return {report["range"]["start"]["line"] + 1: report["message"] for report in reports}


def run(command: list[str], environment: dict[str, str]) -> str:
    """Run a type checker, which exits with 0 or 1, and return what it found."""
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("check", [mypy, pyright])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_what_type_checkers_say(sample: Path, check: Check, request: pytest.FixtureRequest) -> None:
    """Every line that is marked as wrong is reported, and no other line is."""
    assert request.config.cache is not None
    found = check(sample, request.config.cache.mkdir(check.__name__))
    lines = sample.read_text(encoding="utf-8").splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {number: message for number, message in found.items() if number not in wrong} == {}
    assert [lines[number - 1].strip() for number in sorted(wrong - set(found))] == []
