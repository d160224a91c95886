"""The lab finds the programs it needs, or says in one line how to get them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leasecache.errors import ConfigError
from leasecache.lab import MemcachedServer, RedisServer, account, fetch, install
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
    for find in (install.memcached_program, install.recent_memcached, install.redis_program, install.postgres_programs):
        find.cache_clear()


def started_from(packages: Path) -> tuple[Path, str]:
    """Start a pair in a new process that finds the wheel in `packages`; return where it ran from and an answer."""
    path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    programs, answer = done.stdout.split()
    return Path(programs), answer


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A directory that only its owner can enter."""
    directory = tmp_path / "private"
    directory.mkdir(mode=0o700)
    return directory


def test_postgres_runs_from_where_only_its_owner_can_enter(private: Path) -> None:
    """With the wheel in a private directory a pair starts: as root from a copy elsewhere, which goes in the end."""
    for part in install._wheel().parent.glob(f"{install.WHEEL}*"):
        shutil.copytree(part, private / part.name, ignore=shutil.ignore_patterns("include", "pginstall"))
    programs, answer = started_from(private)
    assert answer == "42"
    assert programs.is_relative_to(private) == programs.exists() == (os.geteuid() != 0)


def test_postgres_runs_through_a_link_that_only_its_owner_can_follow(private: Path) -> None:
    """With a link to the wheel in a private directory a pair starts from where the link leads."""
    (private / install.WHEEL).symlink_to(install._wheel())
    programs, answer = started_from(private)
    assert answer == "42"
    assert not programs.is_relative_to(private)


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


def test_recent_memcached_takes_our_numbers() -> None:
    """The recent memcached, of the system or fetched, runs as the account of servers and knows the mark E."""
    with MemcachedServer(recent=True) as server:
        numbers = server.ask("version").removeprefix("VERSION ").split(".")
        assert tuple(int(number.strip()) for number in numbers) >= install.MEMCACHED_RECENT
        assert "c4611686018427387904" in server.ask("mg item N10 c E4611686018427387904")


def test_what_only_its_owner_can_enter_is_copied(private: Path) -> None:
    """A fetched memcached in a private directory is run from there, and by root from a copy in reach."""
    fetched = private / "memcached"
    (fetched / "usr/bin").mkdir(parents=True)
    (fetched / "usr/bin/memcached").write_text("program")
    found = install._reachable(fetched)
    assert (found / "usr/bin/memcached").read_text() == "program"
    assert Account.for_servers().reaches(found)
    assert (found == fetched) == (os.geteuid() != 0)


def test_recent_memcached_that_was_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system's memcached is too old and none was fetched, the error says what to run."""
    monkeypatch.setattr(install, "FETCHED", tmp_path / "nothing")
    monkeypatch.setattr(install, "is_recent", lambda program: False)
    with pytest.raises(ConfigError, match=r"memcached is older than 1\.6\.27; run: make servers"):
        MemcachedServer(recent=True)


def test_fetching_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no apt-get the error says what is needed, and nothing is left behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"a memcached of 1\.6\.27 or later is needed; install one"):
        fetch.fetch(tmp_path / "memcached")
    assert not list(tmp_path.iterdir())
