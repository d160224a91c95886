"""The lab finds the programs it needs, or says in one line how to get them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leasecache.errors import ConfigError
from leasecache.lab import MemcachedServer, RedisServer, account, install
from leasecache.lab.account import Account

START = """
from leasecache.lab import PostgresServer
from leasecache.lab.install import postgres_programs
with PostgresServer(18) as primary, primary.standby() as standby:
    standby.catch_up()
    print(postgres_programs(18), standby.value("select 42"))
"""


@pytest.fixture(autouse=True)
def forgotten_programs() -> None:
    """Nothing that was found before."""
    for find in (install.memcached_program, install.redis_program, install.postgres_programs):
        find.cache_clear()


def test_postgres_runs_from_a_directory_that_only_its_owner_can_enter(tmp_path: Path) -> None:
    """With the wheel under a 0700 directory a pair starts: as root from a copy elsewhere, which goes in the end."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for part in install._wheel().parent.glob(f"{install.WHEEL}*"):
        shutil.copytree(part, private / part.name, ignore=shutil.ignore_patterns("include", "pginstall"))
    environment = {**os.environ, "PYTHONPATH": str(private)}
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    programs, answer = done.stdout.split()
    assert answer == "42"
    assert Path(programs).is_relative_to(private) == (os.geteuid() != 0)
    assert Path(programs).exists() == (os.geteuid() != 0)


@pytest.mark.parametrize("server", [MemcachedServer, RedisServer])
@pytest.mark.parametrize(("platform", "installer"), [("linux", "apt-get"), ("darwin", "brew")])
def test_a_missing_program_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, server: type[MemcachedServer | RedisServer], platform: str, installer: str
) -> None:
    """Without memcached or Redis the error is one line with the command that installs it."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(ConfigError, match=rf"^[a-z-]+ is not installed; run: {installer} install [a-z-]+$"):
        server()


def test_an_old_redis_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A redis-server before 7.0 is an error that shows its version."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"is too old \(Redis server v=6.2.14 .*; install Redis 7.0 or later"):
        RedisServer()


def test_a_missing_wheel_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error is one line with the command that installs it."""
    monkeypatch.setattr(install, "WHEEL", "no_such_wheel")
    with pytest.raises(ConfigError, match=r"^no_such_wheel is not installed; run: pip install 'leasecache\[lab\]'$"):
        install.postgres_programs(18)


def test_servers_get_a_short_reachable_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A TMPDIR that is too deep for a Unix socket is passed over; one that fits is taken."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    for asked, expected in ((str(deep), "/tmp"), ("/var/tmp", "/var/tmp")):
        monkeypatch.setenv("TMPDIR", asked)
        monkeypatch.setattr("tempfile.tempdir", None)
        assert Account.for_servers().scratch_root() == Path(expected)


def test_servers_live_in_memory_when_there_is_much_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system in memory (here a stand-in) is used when it is roomy, and never for programs."""
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(account, "MEMORY", Path("/var/tmp"))
    servers = Account.for_servers()
    monkeypatch.setattr(account, "ROOMY", 0)
    assert servers.scratch_root() == Path("/var/tmp")
    assert servers.scratch_root(in_memory=False) != Path("/var/tmp")
    monkeypatch.setattr(account, "ROOMY", 1 << 62)
    assert servers.scratch_root() != Path("/var/tmp")


def test_root_needs_an_account_to_hand_over_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root without any unprivileged account gets an error that names those it looked for."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("leasecache.lab.account.UNPRIVILEGED", ("no-such-account",))
    with pytest.raises(ConfigError, match="no account of no-such-account exists"):
        Account.for_servers()
