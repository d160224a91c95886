"""What a page shows, made into programs and commands that can be run: values shown in comments become assertions."""

import ast
import functools
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from leasecache.lab import wait_until

ROOT = Path(__file__).parent.parent
WITHIN = 60.0  # s
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
SAVED_AS = re.compile(r"`([\w.]+)`:\s*$")
SHOWN = re.compile(r"^(?P<indent> *)(?P<code>\S.*?) +# (?P<value>.+)$", re.MULTILINE)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
LITERAL = (
    *(ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp, ast.USub, ast.Call, ast.keyword),
    ast.expr_context,
)
SERVERS = ("gunicorn", "uvicorn")


def patient(memcached: str) -> dict[str, str]:
    """Return what stands for the pages' memcached: a real one, with time limits that a busy machine keeps."""
    return {"127.0.0.1:11211?": f"{memcached}?timeout=20&connect_timeout=20&"}


class Block(NamedTuple):
    """A block of a page."""

    language: str
    text: str
    before: str  # the line before it

    @property
    def file(self) -> str | None:
        """The name under which the page says to save it."""
        found = SAVED_AS.search(self.before)
        return found and found[1]


def blocks(page: str, addresses: Mapping[str, str] | None = None) -> list[Block]:
    """Return the blocks of a page, with real addresses in place of those that it shows."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return list(_blocks(_put(text, addresses or {})))


def sections(page: str, addresses: Mapping[str, str]) -> dict[str, list[Block]]:
    """Return the blocks of each section that has any to run, by its heading.

    A page whose Python begins before its first heading is one section, "".
    """
    text = _put((ROOT / page).read_text(encoding="utf-8"), addresses)
    before, *parts = SECTION.split(text)
    found = {heading: list(_blocks(part)) for heading, part in zip(parts[::2], parts[1::2], strict=True)}
    if any(block.language == "python" for block in _blocks(before)):
        found = {"": list(_blocks(text))}
    return {heading: inner for heading, inner in found.items() if {"python", "console"} & {b.language for b in inner}}


def checked(program: str) -> tuple[str, int]:
    """Return a program in which `expression  # value` asserts it, and how many of these there are."""
    number = 0

    def check(line: re.Match[str]) -> str:
        nonlocal number
        if not (_is_expression(line["code"]) and _is_value(line["value"])):
            return line[0]
        number += 1
        return f"{line['indent']}_shown(({line['code']}), {line['value']})"

    return SHOWN.sub(check, program), number


SHOWN_IS = """\
def _shown(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}, as the page says"


"""


def run_program(text: str, directory: Path) -> int:
    """Run a page's Python in a process of its own; return how many of its values were checked."""
    program, number = checked(text)
    path = directory / "program.py"
    future = "from leasecache import Refused, Stored\n\n"
    path.write_text(future + SHOWN_IS + program, encoding="utf-8")
    done = subprocess.run([sys.executable, str(path)], cwd=directory, capture_output=True, text=True, timeout=WITHIN)
    assert done.returncode == 0, f"{done.stderr}\n{program}"
    return number


class Console:
    """Runs what a console block shows: servers, one at a time, and what is asked of them."""

    def __init__(self, directory: Path) -> None:
        self.asked = 0
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end()

    def run(self, block: str) -> None:
        """Run each command; a server is left running until the next one, and `curl` gets what the block shows."""
        for line, shown in COMMAND.findall(block):
            words = shlex.split(line)
            if words[0] in SERVERS:
                self._end()
                quickly = ["--graceful-timeout", "1"] if words[0] == "gunicorn" else []  # gevent workers take all of it
                self._server = subprocess.Popen(
                    [sys.executable, "-m", *words, *quickly],
                    cwd=self._directory,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            else:
                assert words[0] == "curl"
                wait_until(functools.partial(self._answers, words[1]), WITHIN, line)
                assert _get(words[1]).strip() == shown.strip()
                self.asked += 1

    def _answers(self, url: str) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, "the server of the page has ended"
        try:
            _get(url)
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def _end(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(WITHIN)
            self._server = None


def run_section(shown: Sequence[Block], directory: Path, console: Console) -> int:
    """Save, run and ask what a section shows, in its order; return how many values were checked."""
    program = ""
    for block in shown:
        if block.file is not None:
            (directory / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            console.run(block.text)
        elif block.language == "python":
            program += block.text + "\n"
    return run_program(program, directory) if program else 0


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=WITHIN) as answer:
        return str(answer.read().decode())


def _blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        yield Block(found[1], found[2], text[: found.start()].rstrip().rpartition("\n")[2])


def _put(text: str, addresses: Mapping[str, str]) -> str:
    for shown, real in addresses.items():
        text = text.replace(shown, real)
    return text


def _is_expression(code: str) -> bool:
    try:
        ast.parse(code, mode="eval")
    except SyntaxError:
        return False
    return not code.startswith("#")


def _is_value(text: str) -> bool:
    """Tell whether a comment is a value: literals, and records such as `User(id=1)`, and nothing else."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return False
    records = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return all(
        isinstance(node, LITERAL) or (id(node) in records and isinstance(node, ast.Name) and node.id[0].isupper())
        for node in ast.walk(tree)
    )
