"""Everything that a real server's stream can bring, and the keys that it touches."""

import datetime
import resource
import time
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from leasecache.invalidation.lsn import parse_lsn
from leasecache.invalidation.router import Router
from leasecache.invalidation.source import Replication
from leasecache.invalidation.stream import (
    Drift,
    Event,
    Garbage,
    Keepalive,
    Loss,
    Stream,
    Touched,
    Transaction,
    status_update,
)
from leasecache.keys import FieldType, KeyTemplate
from leasecache.messages import build_message
from leasecache.rules import Rule, RuleSet
from tests.fix_servers import PostgresPair

SLOT = "cases"
WITHIN = 60.0  # s
GROWTH = 64 * 2**20  # bytes that a transaction of a million rows may take; its keys alone would be twice that


def rule(table: str, field: str = "int", column: str = "k", schema: str = "public", **changes: str) -> Rule:
    """Return the rule that ties `<table>:{x}` to a column of a kind."""
    name = changes.get("name", table)
    return Rule(
        function=f"get_{name}",
        template=f"{name}:{{x}}",
        kinds={"x": field},
        schema=schema,
        table=table,
        fields={"x": column},
    )


class Tap:
    """A slot of a database of the test's own, and what it brings."""

    def __init__(self, pair: PostgresPair, database: str) -> None:
        self._server, self._database = pair.primary, database
        self._conversation: Replication | None = None
        self.connection = pair.primary.connect(database)
        self.most_keys = 0  # that an open transaction has held between two batches of frames

    def run(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        for statement in statements:
            self.connection.execute(statement.encode())

    def open(self, *rules: Rule, most_keys: int = 100_000, publish: str = "for all tables") -> "Tap":
        """Begin the conversation; what is written from now on is brought."""
        self.run(f"create publication leasecache {publish}")
        self._server.create_logical_slot(SLOT + self._database, dbname=self._database)
        self._conversation = Replication(self._server.dsn(self._database))
        self._conversation.start(SLOT + self._database, "leasecache")
        self._stream = Stream(Router(RuleSet(namespace="shop", rules=rules)), most_keys)
        return self

    def events(self) -> Iterator[Event]:
        """Yield what came up to now."""
        assert self._conversation is not None
        written = parse_lsn(self._server.value("select pg_current_wal_lsn()::text", dbname=self._database))
        deadline, position = time.monotonic() + WITHIN, 0
        while position < written:
            assert time.monotonic() < deadline, f"{position} of {written}"
            frames = self._conversation.read(2000)
            for event in self._stream.feed(frames):
                position = max(position, event.wal_end if isinstance(event, Keepalive) else 0)
                if isinstance(event, Keepalive) and event.reply_requested:
                    self._conversation.send(status_update(0, time.time()))
                yield event
            self.most_keys = max(self.most_keys, len(self._stream.touched.keys))
            if not frames:
                self._conversation.send(status_update(0, time.time(), reply_requested=True))
                time.sleep(0.001)

    def touched(self, *statements: str) -> Touched:
        """Run statements and return what they touched."""
        self.run(*statements)
        found = Touched()
        for event in self.events():
            if isinstance(event, Transaction):
                found.merge(event.touched)
        return found

    def keys(self, *statements: str) -> set[str]:
        """Run statements that lose nothing, and return the keys that they touched, without the namespace."""
        found = self.touched(*statements)
        assert found.everything is None, found.losses
        return {key.decode().removeprefix("shop:") for key in found.keys}

    def close(self) -> None:
        """End the conversation."""
        if self._conversation is not None:
            self._conversation.close()
        self.connection.close()


@pytest.fixture
def tap(postgres_pair: PostgresPair, database: str) -> Iterator[Tap]:
    """A tap, not opened yet."""
    made = Tap(postgres_pair, database)
    yield made
    made.close()


def lost(reason: str, table: str, function: str) -> dict[Loss, int]:
    """Return one loss."""
    return {Loss(reason, f"public.{table}", function): 1}


def rendered(name: str, kind: str, value: object) -> bytes:
    """Return the key that the application has for a value."""
    template = KeyTemplate.typed(f"{name}:{{x}}", {"x": FieldType(kind=kind)})
    return template.renderer("shop").from_python((value,))


def test_replica_identities(tap: Tap) -> None:
    """Under each identity rows touch their old and their new key, and what it does not tell is a loss."""
    tap.run(
        "create table d (id int primary key, k int, v text)",
        "create table i (id int primary key, k int not null, v text)",
        "create unique index i_k on i (k, id)",
        "alter table i replica identity using index i_k",
        "create table f (id int, k int, v text)",
        "alter table f replica identity full",
        "create table n (id int primary key, k int, v text)",
        "alter table n replica identity nothing",
    )
    tap.open(*(rule(table) for table in "difn"), rule("d", column="id", name="own"))
    for table in "if":
        assert tap.keys(f"insert into {table} values (1, 7, 'a')") == {f"{table}:7"}
        assert tap.keys(f"update {table} set v = 'b'") == {f"{table}:7"}
        assert tap.keys(f"update {table} set k = 8") == {f"{table}:7", f"{table}:8"}
        assert tap.keys(f"update {table} set id = 2, k = 9") == {f"{table}:8", f"{table}:9"}
        assert tap.keys(f"delete from {table}") == {f"{table}:9"}
    assert tap.keys("insert into d values (1, 7, 'a')") == {"d:7", "own:1"}
    assert tap.touched("update d set v = 'b'").losses == lost("identity", "d", "get_d")
    moved = tap.touched("update d set id = 2, k = 8")
    assert {*moved.keys} == {b"shop:d:8", b"shop:own:1", b"shop:own:2"}
    assert (moved.everything, moved.losses) == ("identity", lost("identity", "d", "get_d"))
    assert tap.touched("delete from d").losses == lost("identity", "d", "get_d")
    assert tap.keys("insert into n values (1, 7, 'a')") == {"n:7"}
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        tap.run("update n set k = 8")
    assert tap.keys("insert into f values (1, null, 'a')", "update f set k = 3") == {"f:!", "f:3"}


def test_large_values(tap: Tap) -> None:
    """A large value that an update does not touch is the old one where the old row tells it, else a loss."""
    for table in ("t", "u"):
        tap.run(
            f"create table {table} (id int primary key, k text, v int)",
            f"alter table {table} alter k set storage external",
        )
    tap.run("alter table t replica identity full")
    tap.open(rule("t", "str"), rule("u", "str"), rule("u", column="id", name="own"))
    key = rendered("t", "str", "x" * 3000)
    assert len(key) == 220
    tap.touched("insert into t values (1, repeat('x', 3000), 1)", "insert into u select * from t")
    known = tap.touched("update t set v = 2")
    assert (known.keys, known.everything) == ({key: 0.0}, None)
    unknown = tap.touched("update u set v = 2")
    assert unknown.losses == {**lost("toast", "u", "get_u"), **lost("identity", "u", "get_u")}
    assert {*unknown.keys} == {b"shop:own:1"}


def test_partitions_cascades_and_names(tap: Tap) -> None:
    """Partitions go by their root, cascades bring each row they reach, and names are told apart letter by letter."""
    tap.run(
        "create table p (k int, v int) partition by list (k)",
        "create table p1 partition of p for values in (1)",
        "create table p2 partition of p for values in (2)",
        "create table parent (k int primary key)",
        "create table child (id int primary key, k int not null references parent on update cascade on delete cascade)",
        "create unique index child_k on child (k, id)",
        'create schema "Schéma ""1"""',
        'create table "Schéma ""1"""."Käse; .x" ("Größe ""k""" int primary key)',
        "create schema other",
        "create table other.parent (k int primary key)",
    )
    for table in ("p", "p1", "p2"):
        tap.run(f"alter table {table} replica identity full")
    tap.run("alter table child replica identity using index child_k")
    odd = rule("Käse; .x", column='Größe "k"', schema='Schéma "1"', name="odd")
    tap.open(
        *(rule("p"), rule("p1", name="leaf"), rule("parent"), rule("child"), odd),
        rule("parent", schema="other", name="otherparent"),
        publish="for all tables with (publish_via_partition_root)",
    )
    assert tap.keys("insert into p values (1, 1)", "update p set v = 2") == {"p:1"}
    assert tap.keys("update p set k = 2") == {"p:1", "p:2"}
    assert tap.keys("delete from p") == {"p:2"}
    tap.keys("insert into parent values (1), (2)", "insert into child values (1, 1), (2, 1), (3, 2)")
    assert tap.keys("update parent set k = 7 where k = 1") == {"parent:1", "parent:7", "child:1", "child:7"}
    assert tap.keys("delete from parent where k = 7") == {"parent:7", "child:7"}
    assert tap.keys('insert into "Schéma ""1"""."Käse; .x" values (5)') == {"odd:5"}
    assert tap.keys("insert into other.parent values (9)") == {"otherparent:9"}
    gone = tap.touched("truncate parent cascade")
    assert gone.losses == {**lost("truncate", "parent", "*"), **lost("truncate", "child", "*")}
    assert (gone.everything, gone.keys) == ("truncate", {})
    assert not tap.touched("create table apart (k int primary key)", "truncate apart")


def test_what_commits_and_what_does_not(tap: Tap) -> None:
    """Savepoints that are rolled back bring nothing; prepared transactions come when they are committed, or never."""
    tap.run("create table t (k int primary key)")
    tap.open(rule("t"))
    assert tap.keys(
        "begin; insert into t values (1); savepoint a; insert into t values (2); savepoint b;"
        "insert into t values (3); rollback to a; insert into t values (4); release a; commit"
    ) == {"t:1", "t:4"}
    assert tap.keys("begin; insert into t values (5); rollback") == set()
    assert tap.keys("begin; insert into t values (6); prepare transaction 'six'") == set()
    tap.run("begin; insert into t values (7); prepare transaction 'seven'", "rollback prepared 'seven'")
    assert tap.keys("commit prepared 'six'") == {"t:6"}
    assert tap.keys("do $$ begin insert into t values (8); insert into t values (8);"
                    " exception when unique_violation then insert into t values (9); end $$") == {"t:9"}  # fmt: skip


VALUES = (
    ("int2", "int", "-32768", -32768),
    ("int4", "int", "0", 0),
    ("int8", "int", "9223372036854775807", 2**63 - 1),
    ("text", "str", "E'a b\\nü%:!'", "a b\nü%:!"),
    ("text", "str", "''", ""),
    ("varchar(9)", "str", "'x  '", "x  "),
    ("mood", "str", "'so so'", "so so"),
    ("bool", "bool", "true", True),
    ("uuid", "uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    ("date", "date", "'2024-02-29'", datetime.date(2024, 2, 29)),
    ("bytea", "bytes", r"'\x00ff20'", b"\x00\xff "),
    ("text", "str", "repeat('ü', 300)", "ü" * 300),
)


def test_every_type_of_key_field(tap: Tap) -> None:
    """What Postgres prints for a column of each type is rendered to the key that the application's value has."""
    tap.run("create type mood as enum ('so so')")
    rules, expected = [], set()
    for number, (column, kind, _, value) in enumerate(VALUES):
        tap.run(f"create table v{number} (k {column} not null unique)")
        rules.append(rule(f"v{number}", kind))
        expected.add(rendered(f"v{number}", kind, value))
    tap.open(*rules)
    assert len(expected) == len(VALUES)
    found = tap.touched(*(f"insert into v{number} values ({text})" for number, (_, _, text, _) in enumerate(VALUES)))
    assert ({*found.keys}, found.everything) == (expected, None)


def test_tables_that_change_in_mid_stream(tap: Tap) -> None:
    """Columns and tables that are added, renamed and dropped are known from their next row on, within a transaction."""
    tap.run("create table t (gone text, k int primary key, v text)", "create table s (k int primary key)")
    tap.open(rule("t"), rule("s"))
    assert tap.keys("insert into t values ('a', 1, 'b')", "alter table t add w int") == {"t:1"}
    assert tap.keys("insert into t values ('a', 2, 'b', 3)", "alter table t drop gone") == {"t:2"}
    assert tap.keys("begin; insert into t values (3, 'b', 3); alter table t add x int default 5;"
                    "insert into t values (4, 'b', 3); alter table t drop v; update t set w = 9 where k = 4; commit"
    ) == {"t:3", "t:4"}  # fmt: skip
    renamed = tap.touched("alter table t rename k to kk", "insert into t values (5, 1, 1)")
    assert (renamed.losses, renamed.keys) == (lost("column", "t", "get_t"), {})
    assert tap.keys("alter table t rename kk to k", "update t set w = 1 where k = 5") == {"t:5"}
    assert tap.keys("alter table t rename to r", "insert into r values (6, 1, 1)") == set()
    assert tap.keys("alter table r rename to t", "insert into t values (7, 1, 1)") == {"t:7"}
    assert tap.keys("drop table s", "create table s (v text, k int primary key)", "insert into s values ('', 8)") == {
        "s:8"
    }
    text = tap.touched("alter table t alter k type text", "insert into t values ('x', 1, 1)")
    assert text.losses == lost("value", "t", "get_t")


def test_messages(tap: Tap) -> None:
    """Messages come with their transaction; all that is garbage is named, and harms nothing that comes after it."""
    tap.run("create table t (k int primary key)")
    tap.open(rule("t"))
    emit = "select pg_logical_emit_message"
    message = build_message({b"shop:a": 3, b"else:a": 0}).parameters[0]
    found = tap.touched(f"begin; insert into t values (1); {emit}(true, 'leasecache', '{message}'); commit")
    assert (found.keys, found.explicit, found.messages) == ({b"shop:t:1": 0.0}, {b"shop:a": 3.0}, 1)
    assert not tap.touched(f"begin; {emit}(true, 'leasecache', '{message}'); rollback")
    templates = tap.touched(f"{emit}(true, 'leasecache', E'1\\n= 0 shop:c:{{int}}:{{str}} 7 a%20b')")
    assert templates.explicit == {b"shop:c:7:a%20b": 0.0}
    assert tap.touched(f"{emit}(true, 'leasecache', E'1\\n* shop')").everything == "namespace"
    assert not tap.touched(f"{emit}(true, 'leasecache', E'1\\n* blog')")
    tap.run(
        f"{emit}(false, 'leasecache', '{message}')",
        f"begin; {emit}(false, 'leasecache', 'x'); {emit}(true, 'leasecache.ddl', 'ALTER TABLE'); commit",
        f"{emit}(true, 'leasecache', ''::bytea)",
        f"{emit}(true, 'leasecache', decode('ff00fe', 'hex'))",
        f"{emit}(true, 'leasecache', repeat('9', 2000000))",
        f"{emit}(true, '', 'x')",
        f"{emit}(true, 'leasecaché', 'x')",
        f"{emit}(true, 'leasecache', E'1\\n0 shop:b')",
    )
    events = list(tap.events())
    assert [event.reason for event in events if isinstance(event, Garbage)] == [
        *["sent without regard to its transaction"] * 2,
        *("unknown version b''", r"unknown version b'\xff\x00\xfe'", "2000000 bytes are more than 1048576"),
    ]
    assert [event for event in events if isinstance(event, Drift)] == [Drift("ALTER TABLE")]
    explicit = [{*event.touched.explicit} for event in events if isinstance(event, Transaction)]
    assert [keys for keys in explicit if keys] == [{b"shop:b"}]


def test_a_transaction_of_a_million_rows(tap: Tap, postgres_version: int) -> None:
    """Guard: the limit of keys. A transaction however large takes bounded memory, and gives up everything."""
    rows = 1_000_000 if postgres_version == 18 else 100_000
    tap.run("create table t (k int)")
    tap.open(rule("t"), most_keys=10_000)
    tap.run("begin", f"insert into t select generate_series(1, {rows})")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = tap.touched("commit")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert (found.rows, found.everything, found.keys) == (rows, "keys", {})
    assert found.losses == {Loss("keys", "*", "*"): 1}
    assert tap.most_keys <= 10_000
    assert grown < GROWTH
    assert tap.keys("insert into t values (1)") == {"t:1"}
