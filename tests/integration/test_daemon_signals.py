"""Signals to a daemon that has nothing in flight yet."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from leasecache.lab import wait_until

WITHIN = 60.0  # s
AT_ONCE = 30.0  # s, on the busiest machine: what would keep it takes 90 s
APPLICATION = """
import time
from pathlib import Path
from leasecache import Cache, row

cache = Cache.from_url("memcached://127.0.0.1:1?namespace=shop&guard=daemon")

@cache.cached("media:{media_id}", ttl=60, depends_on=row("media", media_id="id"))
def get_media(media_id: int) -> str: ...

if Path("slow").exists():
    Path("importing").touch()
    try:
        time.sleep(90)
    except BaseException:
        pass
"""
CONFIGURATION = """
[source]
dsn = "postgresql://somebody@127.0.0.1:{port}/app?connect_timeout=90"
slot = "leasecache"
publication = "leasecache"
[cache]
url = "memcached://127.0.0.1:1?namespace=shop&guard=daemon"
[rules]
import = ["shop:cache"]
"""


@pytest.mark.parametrize("command", [("leasecache.invalidation",), ("leasecache", "daemon")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_while_it_starts(tmp_path: Path, command: tuple[str, ...], number: signal.Signals) -> None:
    """While it imports the application, and while it waits for the source to answer, it ends at once with 0.

    Guard: nothing that the application catches, and no time limit of a connection, keeps it.
    """
    with ExitStack() as opened:
        silent = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        (tmp_path / "shop.py").write_text(APPLICATION, encoding="utf-8")
        text = CONFIGURATION.format(port=silent.getsockname()[1])
        (tmp_path / "leasecache.toml").write_text(text, encoding="utf-8")

        def connected() -> bool:
            connection = opened.enter_context(silent.accept()[0])
            return bool(connection.recv(8))

        (tmp_path / "slow").touch()
        assert _end(tmp_path, command, number, (tmp_path / "importing").exists) == (0, "")
        (tmp_path / "slow").unlink()
        assert _end(tmp_path, command, number, connected) == (0, "")


def _end(
    directory: Path, command: tuple[str, ...], number: signal.Signals, begun: Callable[[], bool]
) -> tuple[int, str]:
    """Return exit code and output of a daemon that is sent a signal once `begun`."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--config", "leasecache.toml"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(begun, WITHIN, "its start")
        process.send_signal(number)
        output, _ = process.communicate(timeout=AT_ONCE)
        return process.returncode, output
    finally:
        process.kill()
        process.communicate()
