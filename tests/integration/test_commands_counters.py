"""`leasecache counters` on a real Postgres: DDL, drift, repair, and errors of one line without passwords."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasecache.lab import PostgresServer, free_port
from tests.fix_daemon import run_to_exit

CLI = ("-m", "leasecache.cli", "counters")
APPLICATION = """
from leasecache.counters import counter
likes = counter("media_likes", of="likes", by="media_id")
unapplied = counter("nowhere", of="likes", by="media_id")
answer = 42
"""
DRIFT = [
    {"key": 2, "stored": 93, "actual": 3, "difference": -90},
    {"key": 1, "stored": 0, "actual": 5, "difference": 5},
]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server whose database the tests of this module change in turn."""
    with PostgresServer(18) as server:
        yield server


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application where the commands can import it, and no hint at a database but what a test gives."""
    (tmp_path / "likes_application.py").write_text(APPLICATION)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("PG") or name == "LEASECACHE_DSN"]:
        monkeypatch.delenv(name)


@pytest.fixture
def drifted(postgres: PostgresServer, application: None) -> str:
    """Apply the counter as `counters sql` prints it, falsify two of three counts, and return the DSN."""
    postgres.query("drop table if exists likes, media_likes")
    postgres.query("create table likes (media_id bigint, user_id bigint)")
    postgres.query("insert into likes select 1, n from generate_series(1, 5) n")
    code, out, err = run_to_exit([*CLI, "sql", "likes_application:likes"])
    assert (code, err) == (0, "")
    with postgres.connect(autocommit=True) as connection:
        connection.execute(out.encode())
    postgres.query("insert into likes select 2 + n % 2, n from generate_series(0, 5) n")
    postgres.query("update media_likes set count = case media_id when 1 then 0 else count + 90 end where media_id < 3")
    return postgres.dsn()


def test_verify_and_repair(drifted: str) -> None:
    """`verify` finds what `repair` mends, the worst first, and then nothing; the exit code tells which."""
    verify, repair = ([*CLI, command, "likes_application:likes", "--dsn", drifted] for command in ("verify", "repair"))
    code, out, err = run_to_exit([*verify, "--json"])
    assert (code, json.loads(out), err) == (1, DRIFT, "")
    code, out, err = run_to_exit(verify)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert (code, cells, err) == (1, [["2", "93", "3", "-90"], ["1", "0", "5", "+5"]], "")
    code, out, err = run_to_exit([*repair, "--json"])
    assert (code, json.loads(out), err) == (0, DRIFT, "")
    assert run_to_exit(repair) == (0, "every count was exact\n", "")
    assert run_to_exit(verify, LEASECACHE_DSN="never used") == (0, "every count is exact\n", "")


def test_progress(drifted: str) -> None:
    """On a terminal, standard error shows how many batches are done, and standard output only what was mended."""
    command = [*CLI, "repair", "likes_application:likes", "--json"]
    code, out, err = run_to_exit(command, LEASECACHE_DSN=drifted, FORCE_COLOR="1")
    assert (code, json.loads(out)) == (0, DRIFT)
    assert "repairing media_likes" in err
    assert "1/1" in err


def test_libpq_says_which_database(postgres: PostgresServer, drifted: str) -> None:
    """Without a DSN, libpq's own variables say where; an error then names the server that they mean."""
    host, port = postgres.address.split(":")
    told = {"PGHOST": host, "PGDATABASE": "app", "PGUSER": "postgres", "PGPASSWORD": "hunter2"}
    command = [*CLI, "verify", "likes_application:likes", "--json"]
    assert run_to_exit(command, **told, PGPORT=port)[:2] == (1, json.dumps(DRIFT, indent=2) + "\n")
    closed = str(free_port())
    code, out, err = run_to_exit(command, **told, PGPORT=closed)
    assert (code, out, err.count("\n"), "hunter2" in err) == (2, "", 1, False)
    assert f"host={host} port={closed} dbname=app user=postgres" in err


@pytest.mark.parametrize(
    ("target", "dsn", "says"),
    [
        ("likes_application:gone", "", "has no attribute 'gone'"),
        ("no_such_application:likes", "", "no_such_application"),
        ("likes_application", "", "module:attribute"),
        ("likes_application:answer", "", "no Counter but of type int"),
        ("likes_application:likes", None, "--dsn"),
        ("likes_application:likes", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/app", "is Postgres running"),
        ("likes_application:likes", "postgresql//me:hunter2@", "not a Postgres connection string"),
        ("likes_application:unapplied", "real", "leasecache counters sql likes_application:unapplied"),
    ],
    ids=["attribute", "module", "spelling", "type", "no dsn", "unreachable", "bad dsn", "no table"],
)
def test_errors_are_one_line(
    postgres: PostgresServer, application: None, target: str, dsn: str | None, says: str
) -> None:
    """Each fault is one line with its fix, without a password, and exit code 2."""
    options = [] if dsn is None else ["--dsn", postgres.dsn() if dsn == "real" else dsn]
    code, out, err = run_to_exit([*CLI, "verify", target, *options])
    assert (code, out, err.count("\n"), "hunter2" in err) == (2, "", 1, False)
    assert says in err


def test_a_repair_that_may_not_write(drifted: str) -> None:
    """A server that only reads refuses a repair, and the error says where to go."""
    dsn = f"{drifted}?options=-cdefault_transaction_read_only%3Don"
    code, out, err = run_to_exit([*CLI, "repair", "likes_application:likes", "--dsn", dsn])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.endswith("; connect to the primary\n")
