"""`setup`: what it applies makes the daemon start, and a second time there is nothing to do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leasecache.lab import MemcachedServer, wait_until
from leasecache.rules import RuleSet
from tests.fix_daemon import SLOT, WITHIN, DaemonProcess, rule, run_to_exit
from tests.fix_servers import PostgresPair

CLI = ("-m", "leasecache.cli")
RULES = (rule("media", "id"), rule("comments", "media_id"))
TABLES = (
    "create table media (id int primary key)",
    "create table comments (id int primary key, media_id int not null)",
)

Configured = Callable[[str], DaemonProcess]


@pytest.fixture
def configured(
    postgres_pair: PostgresPair, database: str, memcached: MemcachedServer, tmp_path: Path
) -> Iterator[Configured]:
    """Make tables, and a configuration for the "primary" or the "standby"."""
    for statement in TABLES:
        postgres_pair.primary.query(statement, dbname=database)
    postgres_pair.standby.catch_up()

    def configure(where: str) -> DaemonProcess:
        dsn = getattr(postgres_pair, where).dsn(database)
        made.append(DaemonProcess(tmp_path, dsn, f"{memcached.url}?namespace=shop", RULES))
        return made[-1]

    made: list[DaemonProcess] = []
    yield configure
    for daemon in made:
        daemon.kill()


@pytest.mark.parametrize("where", ["primary", "standby"])
def test_setup_makes_the_daemon_start(configured: Configured, where: str) -> None:
    """After --apply the check finds nothing, a second setup has nothing to do, and the daemon streams."""
    daemon = configured(where)
    config = ("--config", str(daemon.config))
    code, out, err = run_to_exit([*CLI, "setup", "--apply", *config])
    assert (code, err) == (0, ""), err
    assert (
        out.index("replica identity")
        < out.index("create publication")
        < out.index("create event trigger")
        < out.index("pg_create_logical_replication_slot")
    )
    code, out, err = run_to_exit([*CLI, "check", *config])
    assert (code, out.splitlines()[0], err) == (0, "nothing is wrong", ""), out
    assert run_to_exit([*CLI, "setup", *config]) == (0, "-- nothing to do\n", "")
    daemon.start().streaming()
    assert daemon.terminate() == 0


def test_without_apply_nothing_changes(configured: Configured, postgres_pair: PostgresPair, database: str) -> None:
    """Without --apply the SQL is printed only; --json prints it for programs."""
    config = ("--config", str(configured("primary").config))
    code, out, _ = run_to_exit([*CLI, "setup", "--json", *config])
    assert code == 0
    assert [step["where"] for step in json.loads(out) if not step["optional"]] == [*["primary"] * 3, "source"]
    assert postgres_pair.primary.value("select count(*) from pg_publication", dbname=database) == 0
    assert postgres_pair.primary.query("select 1 from pg_replication_slots where slot_name = %s", SLOT) == []


def test_a_table_is_added_to_the_publication(
    configured: Configured, postgres_pair: PostgresPair, database: str
) -> None:
    """A publication that lacks a table gets it, and keeps what it has."""
    postgres_pair.primary.query("create table other (id int primary key)", dbname=database)
    postgres_pair.primary.query("create publication leasecache for table media, other", dbname=database)
    config = ("--config", str(configured("primary").config))
    assert run_to_exit([*CLI, "setup", "--apply", *config])[0] == 0
    tables = postgres_pair.primary.query("select tablename from pg_publication_tables order by 1", dbname=database)
    assert tables == [("comments",), ("media",), ("other",)]


def test_what_setup_cannot_mend(configured: Configured, postgres_pair: PostgresPair, database: str) -> None:
    """A rule on a table that is not there is named on standard error, and the exit code is 1."""
    daemon = configured("primary")
    postgres_pair.primary.query("drop table comments", dbname=database)
    code, out, err = run_to_exit([*CLI, "setup", "--config", str(daemon.config)])
    assert (code, "create publication" in out) == (1, True)
    assert (
        err == "leasecache: get_comments, public.comments: there is no such table, so nothing invalidates these keys\n"
    )


def test_names_that_are_no_sql(configured: Configured, postgres_pair: PostgresPair, database: str) -> None:
    """Names of publications and tables are names, whatever they hold: they are quoted in SQL and in the protocol."""
    daemon = configured("primary")
    odd = "a\"b'c, d; drop table media --"
    postgres_pair.primary.query("""create table "x'y""z; --" (id int primary key)""", dbname=database)
    rules = RuleSet(
        namespace="shop", rules=(*RULES, rule("x'y\"z; --", "id", template="z:{x}", function="get_z"))
    ).to_json()
    (daemon.config.parent / "rules.json").write_text(json.dumps(rules))
    text = daemon.config.read_text().replace('publication = "leasecache"', f"publication = {json.dumps(odd)}")
    daemon.config.write_text(text)
    config = ("--config", str(daemon.config))
    code, _, err = run_to_exit([*CLI, "setup", "--apply", *config])
    assert (code, err) == (0, ""), err
    assert postgres_pair.primary.query("select pubname from pg_publication", dbname=database) == [(odd,)]
    assert run_to_exit([*CLI, "check", *config])[0] == 0
    daemon.start().streaming()
    postgres_pair.primary.query("insert into media values (1)", dbname=database)
    wait_until(lambda: daemon.metric("rows_total") > 0, WITHIN, daemon.log())
