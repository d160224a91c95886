"""What the README and the quick start show is run, block by block, against real servers."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from leasecache.lab import MemcachedServer, PostgresServer, free_port, wait_until

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED_AS = re.compile(r"`([\w.]+)`:\s*$")
SHOWN = re.compile(r"^(?P<call>[\w.]+\(.*?\))\s+#\s(?P<value>\[.*?\]|\d+)(?:[,:]\s.*)?$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)\)")
PAGES = sorted([ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("**/*.md")])


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A primary for the quick start."""
    with PostgresServer(18) as server:
        yield server


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield language, text and the line before each block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield found[1], found[2], text[: found.start()].rstrip().rpartition("\n")[2]


def test_readme_quick_start_runs(memcached: MemcachedServer) -> None:
    """The Python of the README runs as it stands, but for the address of memcached."""
    shown = [text for language, text, _ in blocks("README.md") if language == "python"]
    names: dict[str, Any] = {"__name__": "quick_start"}
    for text in shown:
        exec(text.replace("127.0.0.1:11211", memcached.address), names)
    assert names["get_media"](12345) == names["Media"](12345, "sunset")
    names["cache"].close()


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
        for language, text, before in blocks("docs/quickstart.md"):
            for shown, real in addresses.items():
                text = text.replace(shown, real)
            saved = SAVED_AS.search(before)
            if saved is not None:
                (tmp_path / saved[1]).write_text(text, encoding="utf-8")
            elif language == "sql":
                for statement in text.split(";\n"):
                    if statement.strip():
                        with postgres.connect(autocommit=True) as connection:
                            connection.execute(statement.encode())
            elif language == "console":
                run_console(text, stack)
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


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a daemon as a supervisor does."""
    process.terminate()
    assert process.wait(30) == 0


def run_python(text: str, names: dict[str, Any]) -> int:
    """Run a block and hold `call(…)  # value` against what the call returns, if need be after a while."""
    exec(text, names)
    expected = [(call, ast.literal_eval(value)) for call, value in SHOWN.findall(text.replace("    likes.", "likes."))]
    for call, value in expected:
        if "conn" in call:
            with names["psycopg"].connect(names["DSN"]) as conn:
                assert eval(call, {**names, "conn": conn}) == value
        else:
            wait_until(lambda call=call, value=value: eval(call, names) == value, 20, f"{call} to be {value}")
    return len(expected)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that exists."""
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_readme_names_tests_that_exist() -> None:
    """Each test that a promise points to is in the file it names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "](tests/" in line]
    assert len(rows) == 7
    for line in rows:
        found = "".join((ROOT / link).read_text(encoding="utf-8") for link in LINK.findall(line))
        missing = [name for name in re.findall(r"`(test_\w+)`", line) if f"def {name}(" not in found]
        assert not missing, line
