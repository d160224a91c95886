"""Drift: what changes at the source while the daemon runs is found, in the log's order and by looking."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leasecache.errors import SourceError
from leasecache.invalidation.drift import Loss, Watch, compare
from leasecache.invalidation.lsn import parse_lsn
from leasecache.invalidation.source import Replication
from leasecache.invalidation.triggers import loses, triggers_ddl, truncate_ddl
from leasecache.lab import PostgresServer, wait_until
from leasecache.rules import RuleSet
from tests.fix_clerk import Clerk
from tests.fix_daemon import ROLE, SLOT, WITHIN, DaemonProcess, World, rule

RULES = RuleSet(namespace=None, rules=(rule("media", "id"), rule("comments", "media_id"), rule("events", "owner")))
PREPARE = (
    "create table comments (id int primary key, media_id int not null, body text)",
    "create unique index comments_media on comments (media_id, id)",
    "alter table comments replica identity using index comments_media",
    "create table events (day int, owner int) partition by range (day)",
    "create table events_1 partition of events for values from (1) to (2)",
    "alter table events replica identity full",
    "alter table events_1 replica identity full",
    "create table other (id int primary key)",
    "drop publication leasecache",
    "create publication leasecache for table media, comments, events, other with (publish_via_partition_root = true)",
)


@pytest.fixture
def replication(clerk: Clerk) -> Iterator[Replication]:
    """A stream from the clerk's slot."""
    made = Replication(clerk.server.dsn(clerk.database))
    made.start(SLOT, "leasecache")
    yield made
    made.close()


def news(replication: Replication, until: Callable[[list[bytes]], bool]) -> list[bytes]:
    """Return the messages of the stream, the kind of each first, until there are enough of them."""
    found: list[bytes] = []

    def read() -> bool:
        found.extend(frame[25:] for frame in replication.read(1000) if frame[:1] == b"w")
        return until(found)

    wait_until(read, WITHIN, f"messages; there are {found}")
    return found


def told(found: list[bytes]) -> list[str]:
    """Return what matters of messages: "I" an insert, "C" a commit, or what the triggers say."""
    tags = [message.partition(b"leasecache.ddl\0")[2][4:].decode() or message[:1].decode() for message in found]
    return [tag for tag in tags if tag not in "BRY"]


def test_the_log_says_when(clerk: Clerk, replication: Replication) -> None:
    """The triggers' messages come in the log's order: after what was sent before, and with the command's commit.

    Guard: without the triggers, a table leaves the publication in mid-stream and nothing tells.
    """
    clerk.run(
        "drop publication leasecache",
        "create table other (id int primary key)",
        "create publication leasecache for table media, other",
    )
    with clerk.server.connect(clerk.database, autocommit=False) as connection:
        connection.execute("insert into media values (1, 1)")
        connection.execute("alter publication leasecache drop table media")
        connection.execute("insert into media values (2, 2)")
    clerk.run("insert into media values (3, 3)", "insert into other values (1)")
    clerk.run("alter publication leasecache add table media", "insert into media values (4, 4)")
    found = told(news(replication, lambda found: told(found).count("I") == 3 and told(found)[-1] == "C"))
    assert found[found.index("I") :] == [
        *("I", "ALTER PUBLICATION", "C"),  # the second insert is lost already
        *("I", "C"),
        *("ALTER PUBLICATION", "C"),
        *("I", "C"),
    ]
    clerk.run("alter table media alter title type text using upper(title)", "drop publication leasecache")
    assert told(news(replication, lambda found: told(found)[-2:] == ["DROP PUBLICATION", "C"])) == [
        *("REWRITE public.media", "ALTER TABLE", "C", "DROP PUBLICATION", "C"),
    ]


def test_a_partition_names_all_of_its_tree(clerk: Clerk, replication: Replication) -> None:
    """A partition that is rewritten or truncated is told with the tables above it: any of them may have the rule.

    Guard: without its trigger, the truncation of a partition leaves nothing in the stream.
    """
    clerk.run(*PREPARE[3:5], *triggers_ddl(clerk.catalog().drift_triggers), *truncate_ddl(['"public"."events_1"']))
    clerk.run("insert into events values (1, 1)", "truncate events_1")
    found = told(
        news(replication, lambda found: any("TRUNCATE" in one for one in told(found)) and told(found)[-1] == "C")
    )
    assert sorted(found[found.index("I") :]) == ["C", "C", "I", "TRUNCATE public.events", "TRUNCATE public.events_1"]
    clerk.run("alter table events alter owner type int8")
    found = told(news(replication, lambda found: told(found)[-2:] == ["ALTER TABLE", "C"]))
    assert sorted(found) == ["ALTER TABLE", "C", "REWRITE public.events", "REWRITE public.events_1"]


def test_temporary_tables_are_not_told(clerk: Clerk, replication: Replication) -> None:
    """Temporary tables that come and go leave no message in the log; every other table does."""
    with clerk.server.connect(clerk.database) as connection:
        for statement in (
            "create temp table t (id serial primary key)",
            "create index on t (id)",
            "drop table t",
            "create temp table t as select 1",
            "drop table t",
            "create table kept (id int)",
            "create table other as select 1",
            "drop table kept",
            "create schema s create table inner_one (id int)",
            "drop schema s cascade",
        ):
            connection.execute(statement)
    tags = told(news(replication, lambda found: told(found)[-2:] == ["DROP SCHEMA", "C"]))
    assert [tag for tag in tags if tag not in "CI"] == [
        *("CREATE TABLE", "CREATE TABLE AS", "DROP TABLE", "CREATE SCHEMA", "DROP SCHEMA"),
    ]


def test_a_missing_publication(clerk: Clerk, replication: Replication, postgres_version: int) -> None:
    """Without its publication a stream of 16 ends with an error at the next change; one of 18 goes on without it."""
    clerk.run("drop publication leasecache", "insert into media values (1, 1)", "create table later (id int)")

    def tags() -> list[str]:
        return told(news(replication, lambda found: told(found)[-2:] == ["CREATE TABLE", "C"]))

    if postgres_version < 18:
        with pytest.raises(SourceError, match='publication "leasecache" does not exist'):
            tags()
    else:
        assert tags() == ["DROP PUBLICATION", "C", "CREATE TABLE", "C"]


@pytest.mark.parametrize(
    ("tag", "loss"),
    [
        ("ALTER PUBLICATION", True),
        ("CREATE PUBLICATION", True),
        ("DROP PUBLICATION", True),
        ("ALTER SCHEMA", True),
        ("ALTER TYPE", True),
        ("ALTER TABLE", False),
        ("CREATE TABLE", False),
        ("REWRITE public.media", True),
        ("REWRITE public.other", False),
        ("TRUNCATE public.events", True),
        ("TRUNCATE public.other", False),
        ("REWRITE public.m\N{REPLACEMENT CHARACTER}dia", True),
        ("", False),
    ],
)
def test_commands_that_lose_changes(tag: str, loss: bool) -> None:
    """Commands on what all tables may share, and what rewrites one of the rules, lose changes whatever a look finds."""
    assert loses(tag, RULES) is loss


AWAY = "public.media had another name, schema or owner for a while"
STEPS: list[tuple[tuple[str, ...], tuple[str, ...] | None]] = [  # statements → the losses between two looks, None = any
    (("alter table media add more int", "alter table media alter note set default 'x'"), ()),
    (("create index on media (owner)", "comment on table media is 'x'", "analyze media"), ()),
    (("grant select on media to public", "vacuum full media", "cluster media using media_pkey"), ()),
    (("alter publication leasecache drop table other", "drop table other"), ()),
    (("create table events_2 partition of events for values from (2) to (3)",), ()),
    (("insert into events values (2, 2)",), ()),
    (("truncate events_1",), ("public.events has partitions that were truncated or rewritten",)),
    (tuple(truncate_ddl(["events_1"])), ()),
    (("truncate events_1",), ()),  # the log says so itself
    (("alter table events_1 disable trigger leasecache_truncate",), ()),
    (
        ("alter publication leasecache drop table media",),
        ("publication leasecache sends another part of public.media",),
    ),
    (("alter publication leasecache add table media",), ("publication leasecache sends another part of public.media",)),
    (("alter publication leasecache set (publish = 'insert')",), ("publication leasecache sends other operations",)),
    (("drop publication leasecache",), ("publication leasecache is gone",)),
    (("create publication leasecache for all tables",), ("publication leasecache was not there",)),
    (
        ("drop publication leasecache", "create publication leasecache for all tables"),
        ("publication leasecache is another one",),
    ),
    (("alter publication leasecache set (publish_via_partition_root = true)",), None),
    (
        (
            "alter table events detach partition events_2",
            "alter table events attach partition events_2 for values from (2) to (3)",
        ),
        ("public.events was without some of its partitions for a while",),
    ),
    (("alter table events detach partition events_2",), ("public.events has lost partitions, with their rows",)),
    (("alter table media rename to gone", "alter table gone rename to media"), (AWAY,)),
    (
        ("create schema apart", "alter table media set schema apart", "alter table apart.media set schema public"),
        (AWAY,),
    ),
    (
        (
            "alter table media rename id to was",
            "alter table media rename owner to id",
            "alter table media rename was to owner",
        ),
        ("public.media has another key column",),
    ),
    (
        ("alter table comments replica identity default",),
        ("public.comments no longer sends the old values of its key columns",),
    ),
    (("alter table comments replica identity full",), ()),
    (("alter table comments alter media_id type int8",), ("public.comments has another key column",)),
    (("alter table comments rename media_id to m",), ("public.comments has another key column",)),
    (("alter table media set unlogged",), ("another part of public.media", "public.media is another kind of table")),
    (("drop table media cascade", "create table media (id int primary key)"), ("public.media is another table",)),
    (("drop table media",), ("public.media is gone",)),
]


def test_what_two_looks_compare(clerk: Clerk) -> None:
    """Between two looks only what can have kept changes from being sent counts, each in one sentence."""
    clerk.run(*PREPARE)
    before = clerk.catalog(*RULES.rules)
    for statements, losses in STEPS:
        clerk.run(*statements)
        now = clerk.catalog(*RULES.rules)
        found = list(compare(before, now, RULES))
        if losses is not None:
            assert len(found) >= len(losses), statements
            assert all(any(loss in one for one in found) for loss in losses), (statements, found)
            assert losses or not found, (statements, found)
        before = now


@pytest.fixture
def watch(clerk: Clerk) -> Iterator[Watch]:
    """A watch that looks when asked only, once a minute apart; its wake counts in `rung`."""
    clerk.run(*PREPARE)
    made = Watch(clerk.server.dsn(clerk.database), SLOT, "leasecache", RULES, lambda: None, 60.0)
    yield made
    made.close()


def looked(watch: Watch) -> list[str]:
    """Wait for findings that were not taken yet; return their codes."""
    found: list[list[str]] = []

    def take() -> bool:
        findings = watch.take()
        if findings is not None:
            found.append([finding.code for finding in findings if not finding.note])
        return bool(found)

    wait_until(take, WITHIN, "a look")
    return found[0]


def lost(watch: Watch) -> Loss:
    """Wait for a loss and return the first."""
    found: list[Loss] = []

    def take() -> bool:
        found.extend(watch.losses())
        return bool(found)

    wait_until(take, WITHIN, "a loss")
    return found[0]


def test_a_watch(clerk: Clerk, watch: Watch) -> None:
    """A watch tells what is wrong when that has changed, and each loss once, with a position behind the change."""
    watch.start()
    assert looked(watch) == []
    assert watch.take() is None
    clerk.run("alter publication leasecache drop table media")
    position = parse_lsn(clerk.server.current_lsn())
    watch.ask()
    assert looked(watch) == ["not-published"]
    reason, at = lost(watch)
    assert (reason, at >= position) == ("publication leasecache sends another part of public.media", True)
    assert (watch.take(), watch.losses()) == (None, [])


def test_partitions_with_rows(clerk: Clerk, watch: Watch) -> None:
    """A partition that is attached with rows is a loss, as they were never sent; one that is made anew is none."""
    watch.start()
    assert looked(watch) == []
    clerk.run(
        "create table late partition of events for values from (2) to (3)", "alter table late replica identity full"
    )
    clerk.run("create table old as select 3 as day, 3 as owner", "alter table old replica identity full")
    clerk.run("alter table events attach partition old for values from (3) to (4)")
    watch.ask()
    assert lost(watch).reason == "public.events has partitions that were attached with their rows"
    clerk.run("create table new partition of events for values from (4) to (5)")
    watch.ask()
    assert looked(watch) == ["identity"]  # it does not inherit the root's
    assert watch.losses() == []


def test_a_server_that_is_away(postgres_version: int) -> None:
    """While the server is away a watch keeps trying, tells nothing, and goes on when it is back."""
    rung = threading.Event()
    with PostgresServer(postgres_version) as server:
        server.query("create table media (id int primary key)")
        server.query("create publication leasecache for table media")
        rules = RuleSet(namespace=None, rules=(rule("media", "id"),))
        watch = Watch(server.dsn(), SLOT, "leasecache", rules, rung.set, 0.2).start()
        assert rung.wait(WITHIN)
        assert looked(watch) == ["slot-missing"]
        server.restart()
        server.query("drop publication leasecache")
        assert looked(watch) == ["publication-missing", "slot-missing"]
        assert lost(watch).reason == "publication leasecache is gone"
        watch.close()


def test_triggers_are_mended(clerk: Clerk) -> None:
    """Triggers that are there, but disabled or of another body, are made anew."""
    assert triggers_ddl(clerk.catalog().drift_triggers) == []
    clerk.run("alter event trigger leasecache_ddl disable")
    assert clerk.catalog().drift_triggers == {"sql_drop", "table_rewrite"}
    clerk.run(*triggers_ddl(clerk.catalog().drift_triggers))
    clerk.run(
        "create or replace function public.leasecache_ddl() returns event_trigger language plpgsql as 'begin end'"
    )
    assert clerk.catalog().drift_triggers == frozenset()
    clerk.run(*triggers_ddl(frozenset()))
    assert triggers_ddl(clerk.catalog().drift_triggers) == []


def test_what_is_mended_before_the_look(primary_world: World) -> None:
    """A table that was out of the publication for a moment costs a generation, whatever command came after it.

    Guard: heeding the last command alone, or the difference between looks, misses what was not sent meanwhile.
    """
    for statement in triggers_ddl(frozenset()):
        primary_world.write(statement)
    daemon = primary_world.daemon.start().streaming()
    with primary_world.primary.connect(primary_world.database, autocommit=False) as connection:
        connection.execute("alter publication leasecache drop table media")
        connection.execute("insert into media values (1, 'unseen')")
        connection.execute("alter publication leasecache add table media")
        connection.execute("alter table media add column more int")
    bumped = 'event=generation-bumped reason="ALTER PUBLICATION ran on the primary"'
    wait_until(lambda: bumped in daemon.log(), WITHIN, f"a new generation; {daemon.log()}")


def test_what_only_triggers_tell(primary_world: World, tmp_path: Path) -> None:
    """Rows that change without being sent cost a generation: a rewrite, however long the names, and a partition's end.

    Guard: a tag that is cut off names no table of the rules; without its trigger a partition is truncated in silence.
    """
    schema, table = "s" * 63, "t" * 63
    for statement in (
        f"create schema {schema}",
        f"create table {schema}.{table} (id int primary key, title text)",
        "create table parts (id int primary key) partition by range (id)",
        "create table parts_1 partition of parts for values from (1) to (9)",
        f"alter publication leasecache add table {schema}.{table}, parts",
        "alter publication leasecache set (publish_via_partition_root = true)",
        *triggers_ddl(frozenset()),
        *truncate_ddl(["parts_1"]),
    ):
        primary_world.write(statement)
    rules = (rule(table, "id", schema=schema, template="t:{x}"), rule("parts", "id"))
    dsn = primary_world.source.dsn(primary_world.database, user=ROLE)
    daemon = DaemonProcess(tmp_path, dsn, primary_world.url, rules).start()
    try:
        daemon.streaming()
        for statement, reason in (  # one after the other: of several that come together the first one is named
            (f"alter table {schema}.{table} alter title type int using 1", f"REWRITE {schema}.{table}"),
            ("truncate parts_1", "TRUNCATE public.parts"),
        ):
            primary_world.write(statement)
            bumped = f'event=generation-bumped reason="{reason} ran on the primary"'
            wait_until(lambda: bumped in daemon.log(), WITHIN, f"{bumped}; {daemon.log()}")  # noqa: B023
    finally:
        daemon.kill()
