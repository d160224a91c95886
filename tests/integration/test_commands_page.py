"""docs/commands.md names every command, and what it shows is what comes out."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from leasecache.cli import app
from leasecache.lab import MemcachedServer, PostgresServer
from tests.fix_daemon import run_to_exit

PAGE = (Path(__file__).parent.parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
PREPARE = """
create table user_likes_media (user_id bigint, media_id bigint);
insert into user_likes_media select n, 12345 from generate_series(1, 3) n;
"""


def test_every_command_is_in_the_table() -> None:
    """The table has a line for each command, subcommands included, and for none that is not there."""
    root = typer.main.get_group(app)
    names = set()
    for name, command in root.commands.items():
        names |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    assert set(re.findall(r"^\| `([a-z ]+)` \|", PAGE, re.MULTILINE)) == names


def test_the_page_runs(memcached: MemcachedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block runs in its order on real servers and prints what is shown, but for numbers of the day."""
    with PostgresServer(18) as postgres:
        page = PAGE.replace("127.0.0.1:11211", memcached.address).replace("127.0.0.1:5432", postgres.address)
        for language, text in BLOCK.findall(page):
            if language == "python":
                (tmp_path / "shop.py").write_text(text, encoding="utf-8")
                monkeypatch.chdir(tmp_path)
                prepare(postgres, tmp_path)
            elif language == "sql":
                postgres.query(text)
            else:
                run_console(text)


def prepare(postgres: PostgresServer, directory: Path) -> None:
    """Fill the cache, and apply the counter to likes that are there already."""
    fill = "import shop; shop.get_media(12345); shop.get_media(12345); shop.cache.close()"
    assert run_to_exit(["-c", fill], PYTHONPATH=str(directory))[0] == 0
    with postgres.connect(autocommit=True) as connection:
        connection.execute(PREPARE)
        connection.execute(run_to_exit(["-m", "leasecache", "counters", "sql", "shop:likes"])[1].encode())


def run_console(text: str) -> None:
    """Run each command of a block and hold its output against what the block shows."""
    for command, shown in COMMAND.findall(text):
        code, out, err = run_to_exit(["-m", *shlex.split(command)])
        assert (code, err) == (1 if "difference" in shown and "verify" in command else 0, "")
        assert timeless(out) == timeless(shown)


def timeless(text: str) -> str:
    """Return a text without its numbers, and without what depends on their width."""
    return re.sub(r"[\s─━]+", " ", re.sub(r"[\d.:]+", "#", text))
