"""What the README and the quick start show is run, block by block, against real servers."""

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from leasecache.lab import MemcachedServer, PostgresServer, free_port, wait_until
from tests.pages import ROOT, blocks, patient, run_program, sections

SHOWN = re.compile(r"^(?P<call>[\w.]+\(.*?\))\s+#\s(?P<value>\[.*?\]|\d+)(?:[,:]\s.*)?$", re.MULTILINE)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A primary for the quick start."""
    with PostgresServer(18) as server:
        yield server


def test_readme_quick_start_runs(memcached: MemcachedServer, tmp_path: Path) -> None:
    """The Python of the README runs as it stands, but for the address of memcached, and shows what comes out."""
    shown = sections("README.md", patient(memcached.address))["Quick start"]
    assert [block.language for block in shown] == ["console", "python", "python"]
    assert run_program("\n\n".join(block.text for block in shown[1:]), tmp_path) == 6


def test_quick_start_runs(
    memcached: MemcachedServer, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block of docs/quickstart.md runs in its order, and the values it shows are those that come out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    addresses = {
        "127.0.0.1:5432": postgres.address,
        "127.0.0.1:11211": memcached.address,
        "127.0.0.1:9187": f"127.0.0.1:{free_port()}",
    }
    checked, names = 0, dict[str, Any]()
    with ExitStack() as stack:
        for block in blocks("docs/quickstart.md", addresses):
            language, text, _ = block
            if block.file is not None:
                (tmp_path / block.file).write_text(text, encoding="utf-8")
            elif language == "sql":
                for statement in text.split(";\n"):
                    if statement.strip():
                        with postgres.connect(autocommit=True) as connection:
                            connection.execute(statement.encode())
            elif language == "console":
                run_console(text, stack)
                if "leasecache daemon" in text:
                    ready = partial(is_ready, f"http://{addresses['127.0.0.1:9187']}/readyz")
                    wait_until(ready, 60, "the daemon to be ready")
            else:
                checked += run_python(text, names)
        sys.modules["photos"].cache.close()
        del sys.modules["photos"]
    assert checked == 4


def run_console(text: str, stack: ExitStack) -> None:
    """Run each command; what follows it in the block must be its output. A daemon is left running."""
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        words = [sys.executable, "-m", *shlex.split(command)]
        if "daemon" in words:
            stack.callback(end, subprocess.Popen(words, stderr=subprocess.DEVNULL))
            continue
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        if output:
            assert done.stdout == output


def is_ready(url: str) -> bool:
    """Tell whether a supervisor would say that the daemon is ready."""
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except OSError:  # an HTTPError, too
        return False


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a daemon as a supervisor does."""
    process.terminate()
    assert process.wait(60) == 0


def run_python(text: str, names: dict[str, Any]) -> int:
    """Run a block and hold `call(…)  # value` against what the call returns, if need be after a while."""
    exec(text, names)
    expected = [(call, ast.literal_eval(value)) for call, value in SHOWN.findall(text.replace("    likes.", "likes."))]
    for call, value in expected:
        if "conn" in call:
            with names["psycopg"].connect(names["DSN"]) as conn:
                assert eval(call, {**names, "conn": conn}) == value
        else:
            wait_until(lambda call=call, value=value: eval(call, names) == value, 60, f"{call} to be {value}")
    return len(expected)


def test_every_page_is_in_the_readme_and_every_promise_has_a_test() -> None:
    """The README leads to each page, and each promise to its tests; that these exist is seen to in `test_docs`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("**/*.md")]
    missing = [page for page in pages if f"({page})" not in text]
    assert not missing
    promises = [line for line in text.splitlines() if line.startswith("| ") and "](tests/" in line]
    assert len(promises) == 10


def test_every_extra_is_in_the_readme() -> None:
    """What can be installed with leasecache is told, but for what is for its own bench and load test."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    requires = importlib.metadata.metadata("leasecache").get_all("Provides-Extra") or []
    untold = {extra for extra in requires if f"`leasecache[{extra}]`" not in text}
    assert untold == {"bench", "loadtest"}
