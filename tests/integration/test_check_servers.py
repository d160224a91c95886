"""`check`: servers, role, slot and readers; and what would make the application's own updates fail."""

from dataclasses import replace

import psycopg
import pytest

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.catalog import Catalog, Link, Reader, Role
from leasecache.invalidation.ddl import apply, plan
from leasecache.invalidation.fitness import judge
from leasecache.invalidation.source import connect
from leasecache.invalidation.survey import read_catalog, read_reader
from leasecache.lab import free_port
from leasecache.rules import RuleSet
from tests.fix_clerk import Clerk
from tests.fix_daemon import ROLE, ROLE_SQL, SLOT, rule
from tests.fix_servers import PostgresPair

MEDIA, BY_OWNER = rule("media", "id"), rule("media", "owner")
OPEN, ENCRYPTED = Link(remote=True, encrypted=False, verified=False), Link(remote=True, encrypted=True, verified=False)

SERVERS: list[tuple[dict[str, object], dict[str, tuple[bool, bool]]]] = [  # changes → code: (fatal, note)
    ({"wal_level": "replica"}, {"wal-level": (True, False)}),
    ({"slot": None, "free_slots": 0}, {"no-free-slot": (True, False), "slot-missing": (True, False)}),
    ({"free_senders": 0}, {"no-free-sender": (False, False)}),
    ({"wal_kept": 64}, {}),
    ({"in_recovery": True, "version": 150002}, {"standby-version": (True, False), "physical-slot": (False, False)}),
    (
        {"in_recovery": True, "physical_slot": True, "hot_standby_feedback": False},
        {"hot-standby-feedback": (False, False)},
    ),
    ({"role": Role(name="x", superuser=False, replication=False, monitor=False)}, {"role-replication": (True, False)}),
    (
        {
            "role": Role(name="x", superuser=False, replication=True, monitor=False),
            "readers": (Reader(where="b", system="7", in_recovery=True),),
            "system": "7",
        },
        {"role-monitor": (True, False)},
    ),
    ({"link": OPEN}, {"not-encrypted": (False, False)}),
    ({"link": ENCRYPTED}, {"not-verified": (False, True)}),
    ({"link": replace(ENCRYPTED, verified=True)}, {}),
    ({"drift_triggers": frozenset()}, {"drift-triggers": (False, True)}),
    ({"readers": (Reader(where="b", fault="away"),)}, {"reader-unreachable": (False, False)}),
    ({"readers": (Reader(where="b", system="8"),)}, {"reader-foreign": (True, False)}),
    ({"readers": (Reader(where="b", system="7", link=OPEN),), "system": "7"}, {"not-encrypted": (False, False)}),
]


def test_servers(clerk: Clerk) -> None:
    """Each fault of a server, a role or a reader is found, and says whether the daemon starts all the same."""
    good = replace(clerk.catalog(MEDIA), wal_kept=64)
    assert list(judge(good)) == []
    for changes, expected in SERVERS:
        found = {finding.code: (finding.fatal, finding.note) for finding in judge(replace(good, **changes))}  # type: ignore[arg-type]
        assert found == expected, changes


def test_a_slot_that_no_standby_has(clerk: Clerk, postgres_version: int) -> None:
    """From 17 on a slot of the primary is to be copied to its standbys; `setup` makes it so."""
    assert clerk.codes(MEDIA) == []
    clerk.run(
        f"select pg_drop_replication_slot('{SLOT}')",
        f"select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')",
    )
    assert clerk.codes(MEDIA) == (["slot-failover"] if postgres_version >= 17 else [])


def test_the_documented_role(clerk: Clerk) -> None:
    """The documented role sees everything that is asked, reads no table and changes nothing."""
    clerk.run(ROLE_SQL)
    dsn = clerk.server.dsn(clerk.database, user=ROLE)
    with connect(dsn) as connection:
        catalog = read_catalog(connection, SLOT, "leasecache", RuleSet(namespace=None, rules=(MEDIA,)))
        assert catalog.role == Role(name=ROLE, superuser=False, replication=True, monitor=True)
        assert replace(catalog, role=clerk.catalog().role) == clerk.catalog(MEDIA)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select * from media")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("alter publication leasecache set (publish = 'insert')")


def test_triggers_are_optional(clerk: Clerk) -> None:
    """Whoever may not create event triggers is told so, and the rest of the setup is done."""
    clerk.run("create role poor_owner login replication")
    clerk.run(f"alter database {clerk.database} owner to poor_owner", "alter table media owner to poor_owner")
    clerk.run("drop publication leasecache", "drop event trigger leasecache_ddl")
    rules = RuleSet(namespace=None, rules=(MEDIA,))
    steps = plan(clerk.catalog(MEDIA), rules)
    refusals = apply(steps, clerk.server.dsn(clerk.database, user="poor_owner"), None)
    assert refusals
    assert all("denied" in refusal or "superuser" in refusal or "must be owner" in refusal for refusal in refusals)
    assert clerk.codes(MEDIA) == []
    assert [finding.code for finding in judge(replace(clerk.catalog(MEDIA), wal_kept=1))] == ["drift-triggers"]
    clerk.run("drop owned by poor_owner cascade", f"alter database {clerk.database} owner to postgres")
    clerk.run("drop role poor_owner")


def test_a_table_in_use(clerk: Clerk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`setup` gives up when a table stays locked, instead of queueing in front of the application."""
    monkeypatch.setattr("leasecache.invalidation.ddl._LOCK_WAIT", 0.05)
    clerk.run("create unique index by_owner on media (owner, id)")
    steps = plan(clerk.catalog(BY_OWNER), RuleSet(namespace=None, rules=(BY_OWNER,)))
    with clerk.server.connect(clerk.database, autocommit=False) as connection:
        connection.execute("select from media")
        with pytest.raises(SourceError, match=r"replica identity.*locked by somebody else"):
            apply(steps, clerk.server.dsn(clerk.database), None)
    apply(steps, clerk.server.dsn(clerk.database), None)
    assert clerk.codes(BY_OWNER) == []


def test_an_index_that_was_left_behind(clerk: Clerk) -> None:
    """An index whose building was interrupted is made anew."""
    (finding,) = clerk.findings(BY_OWNER)
    clerk.run("insert into media values (1, 1)", finding.remedy[0])
    name = finding.remedy[0].split('"')[1]
    clerk.run(f"update pg_index set indisvalid = false where indexrelid = '\"{name}\"'::regclass")
    (finding,) = clerk.findings(BY_OWNER)
    assert finding.remedy[0].startswith("drop index concurrently")
    clerk.run(*finding.remedy)
    assert clerk.codes(BY_OWNER) == []


def test_updates_go_on(clerk: Clerk, postgres_version: int) -> None:
    """No remedy makes the application's own UPDATE fail, and what does already is found.

    Guard: taking the check of other publications out of the DDL makes the update below fail.
    """
    clerk.run("insert into media values (1, 1)", "create publication analytics for table media (id, title)")
    (finding,) = clerk.findings(BY_OWNER)
    assert (finding.code, finding.by_setup) == ("identity", False)
    assert 'publication "analytics" must send all columns of media' in finding.remedy[0]
    assert not [
        step for step in plan(clerk.catalog(BY_OWNER), RuleSet(namespace=None, rules=(BY_OWNER,))) if not step.optional
    ]
    clerk.run("update media set owner = 2")
    clerk.run("alter table media replica identity full")
    (finding,) = clerk.findings(BY_OWNER)
    assert (finding.code, "analytics" in finding.consequence) == ("updates-refused", True)
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        clerk.run("update media set owner = 3")
    clerk.run("drop publication analytics", "update media set owner = 3")


def test_generated_columns(clerk: Clerk, postgres_version: int) -> None:
    """From 18 on generated columns can be sent, and must be where they are part of an identity."""
    clerk.run(
        "create table g (k int not null, twice int generated always as (k * 2) stored)",
        "drop publication leasecache",
        "create publication leasecache for table media",
        "insert into g values (1)",
    )
    rules = RuleSet(namespace=None, rules=(rule("g", "k"),))
    apply(plan(clerk.catalog(*rules.rules), rules), clerk.server.dsn(clerk.database), None)
    assert clerk.codes(*rules.rules) == []
    clerk.run("update g set k = 2")
    assert clerk.codes(rule("g", "twice")) == ([] if postgres_version >= 18 else ["generated-column"])
    if postgres_version >= 18:
        clerk.run("alter publication leasecache set (publish_generated_columns = none)")
        assert clerk.codes(*rules.rules) == ["updates-refused"]
        assert clerk.codes(rule("g", "twice")) == ["updates-refused", "generated-column"]
        clerk.run("create table v (k int not null, twice int generated always as (k * 2) virtual)")
        clerk.run("alter publication leasecache add table v")
        (finding,) = clerk.findings(rule("v", "k"))
        assert (finding.code, "virtual columns" in finding.remedy[0]) == ("identity", True)


def test_tables_around_the_rules(clerk: Clerk) -> None:
    """Tables that inherit, partitions that are not logged, and published tables without identity are found."""
    clerk.run(
        "create table old_media (primary key (id)) inherits (media)",
        "create table events (id int, day int, primary key (id, day)) partition by range (day)",
        "create unlogged table events_1 partition of events for values from (1) to (2)",
        "create table bare (id int)",
    )
    (bare, inherited) = clerk.findings(MEDIA)
    assert (bare.code, bare.table, bare.fatal) == ("no-identity", "public.bare", False)
    assert (inherited.code, "public.old_media" in inherited.consequence) == ("inherited", True)
    clerk.run(*bare.remedy)
    assert clerk.codes(MEDIA, rule("old_media", "id", template=MEDIA.template)) == []
    (unlogged,) = clerk.findings(rule("events", "id"))
    assert (unlogged.code, "public.events_1" in unlogged.consequence) == ("not-logged", True)


def test_readers(postgres_pair: PostgresPair, database: str) -> None:
    """A reader tells which cluster it belongs to; one that does not answer is a fault in one line, without password."""
    primary, standby = (read_reader(getattr(postgres_pair, name).dsn(database)) for name in ("primary", "standby"))
    assert (primary.fault, standby.fault) == (None, None)
    assert (primary.system == standby.system, primary.in_recovery, standby.in_recovery) == (True, False, True)
    away = read_reader(f"postgresql://u:hush@127.0.0.1:{free_port()}/app")
    assert "connection refused" in (away.fault or "")
    assert "hush" not in repr(away)
    with pytest.raises(ConfigError):
        read_reader("postgresq://u:hush@h")


def test_a_catalog_is_of_plain_values(clerk: Clerk) -> None:
    """Two looks at what has not changed are equal, so that a difference means a change."""
    first: Catalog = clerk.catalog(MEDIA, BY_OWNER)
    assert first == clerk.catalog(MEDIA, BY_OWNER)
