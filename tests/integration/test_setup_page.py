"""docs/operations/setup.md: what it shows is what happens, from bare tables to a daemon that streams and back."""

import os
import re
import shlex
from pathlib import Path

import pytest

from leasecache.lab import MemcachedServer, PostgresServer
from tests.fix_daemon import ROLE_SQL, DaemonProcess, run_to_exit
from tests.pages import COMMAND, blocks

PAGE = "docs/operations/setup.md"


def test_the_page(memcached: MemcachedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page runs in its order on a server of its own and shows what is there."""
    monkeypatch.chdir(tmp_path)
    with PostgresServer() as postgres:
        addresses = {
            "127.0.0.1:11211": memcached.address,
            "127.0.0.1:5432": postgres.address,
            "127.0.0.1:9187": "127.0.0.1:0",
        }
        for block in blocks(PAGE, addresses):
            if block.file is not None:
                Path(block.file).write_text(block.text, encoding="utf-8")
            elif block.language == "sql":
                for statement in filter(str.strip, block.text.split(";\n")):
                    postgres.query(statement)
            else:
                for command, shown in COMMAND.findall(block.text):
                    output = run(command, postgres)
                    assert [line for line in shown.splitlines() if line not in output] == [], output
        assert postgres.query("select slot_name from pg_replication_slots") == []


def run(command: str, postgres: PostgresServer) -> str:
    """Run a command of the page and return its output; a daemon is ended when it streams."""
    words = shlex.split(command)
    environment = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = words[len(environment) :]
    if words[0] == "psql":
        postgres.query(ROLE_SQL)
        return ""
    if words[1] == "daemon":
        return stream()
    code, out, err = run_to_exit(["-m", *words], **environment, PYTHONPATH=os.getcwd())
    assert err == ""
    assert code == (1 if "create publication" in out and words[1] == "check" else 0), out
    return out


def stream() -> str:
    """Run a daemon with the configuration of the page until it streams; return its log."""
    Path("daemon").mkdir()
    daemon = DaemonProcess(Path("daemon"), "", "")
    daemon.config = Path("leasecache.toml")  # the page's
    try:
        daemon.start().streaming()
        assert daemon.terminate() == 0
    finally:
        daemon.kill()
    return daemon.log()
