"""`check`: every kind of finding on real catalogues, and that its remedy works."""

import pytest

from leasecache.invalidation.ddl import plan
from leasecache.invalidation.lint import lint
from leasecache.lab import PostgresServer
from leasecache.rules import Rule, RuleSet
from tests.fix_clerk import Clerk
from tests.fix_daemon import SLOT, rule
from tests.fix_servers import PostgresPair

MEDIA = rule("media", "id")
BY_OWNER = rule("media", "owner")


def test_nothing_is_wrong(clerk: Clerk) -> None:
    """A rule on the primary key of a published table is served."""
    assert clerk.findings(MEDIA) == []


FAULTY_RULES: list[tuple[Rule, str, str]] = [
    (rule("medai", "id"), "unknown-table", "no such table"),
    (rule("media", "idd"), "unknown-column", "no column 'idd'"),
    (rule("media", "id", columns=("titel",)), "unknown-column", "no column 'titel'"),
    (rule("media", "id", kinds={"x": "uuid"}), "type-mismatch", "x is uuid but column 'id' is int4"),
    (BY_OWNER, "identity", "an UPDATE that changes owner leaves the entry of the old owner stale"),
    (rule("media", "id", columns=("title",)), "columns-filter", "every update invalidates"),
]
COLUMNS = [  # kind of the key, type of the column, do they fit
    ("int", "int2", True),
    ("int", "int8", True),
    ("int", "numeric", False),
    ("int", "text", False),
    ("str", "text", True),
    ("str", "varchar(20)", True),
    ("str", "name", True),
    ("str", "mood", True),
    ("str", "short", True),  # a domain over text
    ("str", "shorter", True),  # a domain over that
    ("str", "char(8)", False),
    ("str", "fixed", False),  # a domain over char(8)
    ("str", "citext", False),
    ("str", "uuid", False),
    ("str", "int4", False),
    ("bool", "bool", True),
    ("uuid", "uuid", True),
    ("uuid", "text", False),
    ("date", "date", True),
    ("date", "timestamptz", False),
    ("bytes", "bytea", True),
    ("bytes", "text", False),
]


def test_faulty_rules(clerk: Clerk) -> None:
    """Each fault of a rule is found once, with rule, table and consequence."""
    for faulty, code, says in FAULTY_RULES:
        (finding,) = clerk.findings(faulty)
        assert (finding.code, finding.rule, finding.table) == (code, faulty.function, f"public.{faulty.table}")
        assert says in finding.consequence


def test_column_types(clerk: Clerk) -> None:
    """A key kind goes only with column types whose text renders to the same key."""
    clerk.run(
        "create type mood as enum ('ok')",
        "create domain short as text",
        "create domain shorter as short",
        "create domain fixed as char(8)",
        "create type citext",  # as its extension does
        "create function cin(cstring) returns citext language internal immutable strict as 'textin'",
        "create function cout(citext) returns cstring language internal immutable strict as 'textout'",
        "create type citext (input = cin, output = cout, internallength = variable, storage = extended)",
        "create table t (id int primary key, "
        + ", ".join(f"c{i} {column} not null" for i, (_, column, _) in enumerate(COLUMNS))
        + ")",
        "alter table t replica identity full",
    )
    for i, (kind, column, fits) in enumerate(COLUMNS):
        codes = clerk.codes(rule("t", f"c{i}", kinds={"x": kind}))
        assert codes == ([] if fits else ["type-mismatch"]), (kind, column)


@pytest.mark.parametrize(
    ("prepare", "codes"),
    [
        (("drop publication leasecache",), ["publication-missing"]),
        (("alter publication leasecache set (publish = 'insert')",), ["publication-operations"]),
        (("drop publication leasecache", "create publication leasecache"), ["not-published"]),
        (
            ("drop publication leasecache", "create publication leasecache for table media (id, owner)"),
            ["published-in-part"],
        ),
        (
            ("drop publication leasecache", "create publication leasecache for table media where (id > 7)"),
            ["published-in-part"],
        ),
        ((f"select pg_drop_replication_slot('{SLOT}')",), ["slot-missing"]),
        (
            (
                f"select pg_drop_replication_slot('{SLOT}')",
                f"select pg_create_physical_replication_slot('{SLOT}')",
            ),
            ["slot-plugin"],
        ),
        (
            (
                f"select pg_drop_replication_slot('{SLOT}')",
                f"select pg_create_logical_replication_slot('{SLOT}', 'pgoutput', twophase => true)",
            ),
            ["slot-two-phase"],
        ),
        (("alter table media replica identity nothing",), ["identity"]),
        (("alter table media set unlogged",), ["not-logged"]),
        (("alter table media rename to m", "create view media as select * from m"), ["not-a-table"]),
    ],
)
def test_faulty_databases(clerk: Clerk, prepare: tuple[str, ...], codes: list[str]) -> None:
    """Each fault of publication, slot and table is found."""
    clerk.run(*prepare)
    assert clerk.codes(MEDIA) == codes


@pytest.mark.parametrize(
    "publication",
    [
        "for table media (id)",
        "for table media where (id > 7)",
        "for all tables with (publish = 'insert')",
        "",
    ],
)
def test_the_remedy_for_a_publication(clerk: Clerk, publication: str) -> None:
    """The DDL for a publication works."""
    clerk.run("drop publication leasecache", f"create publication leasecache {publication}")
    (finding,) = clerk.findings(MEDIA)
    clerk.run(*finding.remedy)
    assert clerk.findings(MEDIA) == []


@pytest.mark.parametrize(
    ("prepare", "remedy"),
    [
        ((), "create unique index concurrently"),
        (("create unique index good on media (owner, id)",), 'using index "good"'),
        (("create unique index partial on media (owner, id) where id > 1",), "create unique index concurrently"),
        (("create unique index nullable on media (owner, id, title)",), "create unique index concurrently"),
        (
            ("alter table media add constraint deferred unique (owner, id) deferrable",),
            "create unique index concurrently",
        ),
        (("create index plain on media (owner, id)",), "create unique index concurrently"),
        (("alter table media alter owner drop not null",), "replica identity full"),
        (("alter table media drop constraint media_pkey",), "replica identity full"),
    ],
)
def test_the_remedy_for_an_identity(clerk: Clerk, prepare: tuple[str, ...], remedy: str) -> None:
    """The DDL prefers an index that exists and can serve, then a new one, then FULL; and it works."""
    clerk.run(*prepare)
    (finding,) = clerk.findings(BY_OWNER)
    assert remedy in finding.remedy[0]
    clerk.run(*finding.remedy)
    assert clerk.findings(BY_OWNER) == []


def test_one_identity_serves_all_rules_of_a_table(clerk: Clerk) -> None:
    """A table has one identity, so the remedy covers the columns of all its rules."""
    remedies = {finding.remedy for finding in clerk.findings(MEDIA, BY_OWNER)}
    clerk.run(*remedies.pop())
    assert not remedies
    assert clerk.findings(MEDIA, BY_OWNER) == []


def test_the_default_identity_is_restored(clerk: Clerk) -> None:
    """When the primary key serves, the remedy is the default identity."""
    clerk.run("alter table media replica identity nothing")
    (finding,) = clerk.findings(MEDIA)
    assert finding.remedy == ('alter table "public"."media" replica identity default',)


def test_odd_names(clerk: Clerk) -> None:
    """Names that need quotes are quoted in the DDL."""
    clerk.run('create schema "Odd""one"', 'create table "Odd""one"."a b" ("x y" int not null, "K" int primary key)')
    odd = rule("a b", "x y", schema='Odd"one')
    (finding,) = clerk.findings(odd)
    clerk.run(*finding.remedy)
    assert clerk.findings(odd) == []


def test_partitions(clerk: Clerk) -> None:
    """A partitioned table is judged by root and leaves, and its changes must come under the root's name."""
    clerk.run(
        "create table events (id int, day date, owner int not null, primary key (id, day)) partition by range (day)",
        "create table events_1 partition of events for values from ('2024-01-01') to ('2025-01-01')",
    )
    by_owner = rule("events", "owner")
    assert clerk.findings(rule("events", "id")) == []
    (finding,) = clerk.findings(by_owner)
    clerk.run(*finding.remedy)
    assert clerk.findings(by_owner) == []
    clerk.run("alter publication leasecache set (publish_via_partition_root = false)")
    (finding,) = clerk.findings(by_owner)
    assert finding.code == "not-published"
    clerk.run(*finding.remedy)
    assert clerk.findings(by_owner) == []


@pytest.mark.parametrize("prepare", [(), ("drop publication leasecache",)])
def test_a_rule_on_a_partition(clerk: Clerk, prepare: tuple[str, ...]) -> None:
    """Rows of a partition come under the name of its root, and no publication sends them under both."""
    clerk.run(
        "create table events (id int primary key) partition by range (id)",
        "create table mid partition of events for values from (1) to (9) partition by range (id)",
        "create table few partition of mid for values from (1) to (2)",
        *prepare,
    )
    rules = RuleSet(namespace=None, rules=(rule("events", "id"), rule("mid", "id"), rule("few", "id")))
    for step in plan(clerk.catalog(*rules.rules), rules):
        clerk.run(step.sql)
    assert plan(clerk.catalog(*rules.rules), rules) == []
    found = clerk.findings(*rules.rules)
    assert [(finding.code, finding.rule) for finding in found] == [("partition", "get_mid"), ("partition", "get_few")]
    assert "sent as changes of public." in found[0].consequence
    clerk.run("drop publication leasecache", "create publication leasecache for table few")
    assert clerk.findings(rule("few", "id")) == []


def test_a_partition_that_is_truncated(clerk: Clerk) -> None:
    """That it is not sent is worth a note, until each partition says so itself."""
    clerk.run(
        "create table events (id int primary key) partition by range (id)",
        "create table events_1 partition of events for values from (1) to (2)",
    )
    catalog, rules = clerk.catalog(rule("events", "id")), RuleSet(namespace=None, rules=(rule("events", "id"),))
    (note,) = (finding for finding in lint(rules, catalog) if finding.code == "partition-truncate")
    assert (note.table, note.note) == ("public.events", True)
    assert [step.sql for step in plan(catalog, rules)] == [*note.remedy]
    clerk.run(*note.remedy)
    assert plan(clerk.catalog(*rules.rules), rules) == []


def test_generated_columns(clerk: Clerk) -> None:
    """A generated column is not in the stream, so no rule can use it."""
    clerk.run("create table g (id int primary key, twice int generated always as (id * 2) stored)")
    assert "generated-column" in clerk.codes(rule("g", "twice"))


def test_wal_level(postgres_version: int) -> None:
    """A server that does not log enough is found first, with the setting to change."""
    with PostgresServer(postgres_version, settings={"wal_level": "replica"}) as server:
        server.query("create table media (id int primary key)")
        clerk = Clerk(server, "app")
        codes = clerk.codes(MEDIA)
        assert codes == ["wal-level", "publication-missing", "slot-missing"]


def test_a_standby_without_feedback(fresh_pair: PostgresPair) -> None:
    """A standby whose slot a vacuum may invalidate is worth a finding, and no reason not to start."""
    fresh_pair.primary.query("create table media (id int primary key)")
    fresh_pair.primary.query("create publication leasecache for table media")
    fresh_pair.standby.catch_up()
    fresh_pair.standby.create_logical_slot(SLOT)
    fresh_pair.standby.configure(hot_standby_feedback=False)
    (finding,) = Clerk(fresh_pair.standby, "app").findings(MEDIA)
    assert (finding.code, finding.fatal) == ("hot-standby-feedback", False)
