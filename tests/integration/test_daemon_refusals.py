"""What the daemon refuses: one line on standard error, the exit code, no traceback."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from leasecache.lab import free_port
from tests.fix_daemon import SLOT, DaemonProcess, World, rule, run_to_exit


def refusal(daemon: DaemonProcess, **environment: str) -> str:
    """Run the daemon to its end; return the line that it leaves on standard error."""
    code, out, err = run_to_exit(["-m", "leasecache.invalidation", "--config", str(daemon.config)], **environment)
    lines = [line for line in err.splitlines() if not line.startswith("ts=")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert lines[0].startswith("leasecache: ")
    return lines[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.write("drop publication leasecache"), "no publication 'leasecache'"),
        (lambda w: w.write("alter publication leasecache drop table media"), "does not send this table"),
        (lambda w: w.write("drop table media"), "get_media, public.media: there is no such table"),
        (lambda w: w.write("alter table media rename id to key"), "no column 'id'"),
        (lambda w: w.write("alter table media alter id type numeric"), "x is int but column 'id' is numeric"),
        (lambda w: w.write("alter table comments replica identity default"), "an UPDATE that changes media_id"),
        (lambda w: w.primary.drop_logical_slots(w.database), "no slot 'leasecache_test'"),
    ],
)
def test_a_database_that_cannot_serve(primary_world: World, change: Callable[[World], None], says: str) -> None:
    """The daemon reads the catalogues before it starts, and refuses what it could not serve."""
    change(primary_world)
    line = refusal(primary_world.daemon)
    assert says in line
    assert "see `leasecache " in line


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SOURCE_DSN", "postgresql://u:hush@127.0.0.1:{port}/app", "connection refused; is Postgres running there?"),
        ("SOURCE_DSN", "postgresql://u:hush@no-such-host.invalid/app", "host name is unknown"),
        ("SOURCE_DSN", "postgresq://u:hush@h/app", "source.dsn is not a Postgres connection string"),
        ("SOURCE_READERS", "host=a,postgresq://u:hush@h/app", "source.readers[1] is not a Postgres connection string"),
        ("SOURCE_GATE", "standby", "standby needs a standby, but the source is a primary"),
        ("SOURCE_SLOT", "Bad", "slot name"),
        ("CACHE_URL", "memcached://h?namespace=blog", "never match"),
        ("CACHE_URL", "memory://", "only caches on the network"),
        ("CACHE_URL", "gopher://h", "scheme"),
        ("STATUS_LISTEN", "nonsense", "host:port"),
        ("RULES_IMPORT", "no_such_application:cache", "no_such_application"),
        ("RULES_FILE", "gone.json", "gone.json"),
        ("SOURCE_DNS", "x", "did you mean LEASECACHE_SOURCE_DSN"),
    ],
)
def test_a_faulty_configuration(primary_world: World, variable: str, value: str, says: str) -> None:
    """A faulty value is named in one line, and a password never."""
    line = refusal(primary_world.daemon, **{f"LEASECACHE_{variable}": value.format(port=free_port())})
    assert says in line
    assert "hush" not in line


@pytest.mark.parametrize(
    ("user", "name", "says"),
    [("nobody", "{}", "there is no such role"), ("postgres", "{}_", "there is no such database")],
)
def test_a_dsn_of_nothing(primary_world: World, user: str, name: str, says: str) -> None:
    """Who or what is not there is named, with the fix."""
    dsn = primary_world.source.dsn(name.format(primary_world.database), user=user)
    assert says in refusal(primary_world.daemon, LEASECACHE_SOURCE_DSN=dsn)


def test_a_journal_that_cannot_be_written(primary_world: World, tmp_path: Path) -> None:
    """A folder that is there and of no use is named before anything is connected to."""
    (tmp_path / SLOT / "lock").mkdir(parents=True)
    line = refusal(primary_world.daemon, LEASECACHE_JOURNAL_DIRECTORY=str(tmp_path))
    assert f"journal.directory: cannot write in {tmp_path / SLOT}: Is a directory; let the" in line


def test_an_unknown_kind(primary_world: World) -> None:
    """A rule of a kind that this version cannot render is refused."""
    config = primary_world.daemon.config.parent
    daemon = DaemonProcess(
        config, primary_world.source.dsn(), primary_world.url, [rule("media", "id", kinds={"x": "f"})]
    )
    assert "unknown kind 'f'" in refusal(daemon)


def test_a_taken_port(primary_world: World) -> None:
    """A status port that is taken is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refusal(primary_world.daemon, LEASECACHE_STATUS_LISTEN=address)
    assert f"cannot listen on {address}" in line
