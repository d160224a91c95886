"""A counter follows every event on its source, and says clearly what it cannot follow."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from leasecache.counters import Counter, Drift, counter
from tests.fix_servers import PostgresPair

Connection = psycopg.Connection[Any]
Connect = Callable[[], Connection]

SOURCE = """
create table media (id bigint primary key);
create table user_likes_media (
    id int generated always as identity primary key,
    user_id int not null,
    media_id bigint references media on delete cascade on update cascade,
    deleted boolean not null default false,
    unique (user_id, media_id)
);
create index on user_likes_media (media_id);
insert into media select generate_series(1, 9);
"""
# Media 1 has three likes, media 2 has two and one taken back, one like is of nothing.
LIKES = """
insert into user_likes_media (user_id, media_id, deleted)
values (1, 1, false), (2, 1, false), (3, 1, false), (1, 2, false), (2, 2, false), (3, 2, true), (9, null, false)
"""
START = {1: 3, 2: 2}
TRACKED = "select media_id, count from media_likes where count <> 0"
COUNTED = "select media_id, count(*) from user_likes_media where not deleted and media_id is not null group by 1"


@pytest.fixture
def connect(postgres_pair: PostgresPair, database: str) -> Iterator[Connect]:
    """Open a connection in autocommit mode to a new database; it closes with the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(postgres_pair.primary.connect(database))


@pytest.fixture
def conn(connect: Connect) -> Connection:
    """A connection to a database with media and an empty table of likes."""
    connection = connect()
    connection.execute(SOURCE)
    return connection


@pytest.fixture
def likes(conn: Connection) -> Counter:
    """A counter of likes, applied, with the likes of START inserted under it."""
    declared = likes_counter()
    conn.execute(declared.sql().encode())
    conn.execute(LIKES)
    return declared


def likes_counter(**changes: Any) -> Counter:
    """Declare the counter of the tests, with changes."""
    named = {"table": "media_likes", "of": "user_likes_media", "by": "media_id", "where": "not deleted"}
    return counter(**{**named, **changes})


def pairs(conn: Connection, query: str) -> dict[Any, int]:
    """Return the rows of a query of key and count."""
    return dict(conn.execute(query.encode()).fetchall())


def versions(conn: Connection) -> dict[Any, int]:
    """Return the version of each key."""
    return pairs(conn, "select media_id, version from media_likes")


EVENTS = {
    "insert": ("insert into user_likes_media (user_id, media_id) values (4, 1)", {1: 4, 2: 2}),
    "insert of several rows": (
        "insert into user_likes_media (user_id, media_id, deleted)"
        " values (5, 3, false), (4, 1, false), (5, 1, false), (6, 3, true), (7, null, false)",
        {1: 5, 2: 2, 3: 1},
    ),
    "insert of nothing": ("insert into user_likes_media (user_id) select 1 where false", START),
    "insert from a select": (
        "insert into user_likes_media (user_id, media_id) select u, m.id from generate_series(20, 24) u, media m",
        {1: 8, 2: 7, **dict.fromkeys(range(3, 10), 5)},
    ),
    "conflict ignored": (
        "insert into user_likes_media (user_id, media_id) values (1, 1), (4, 1) on conflict do nothing",
        {1: 4, 2: 2},
    ),
    "conflict updated": (
        "insert into user_likes_media (user_id, media_id) values (3, 2), (4, 1), (1, 1)"
        " on conflict (user_id, media_id) do update set deleted = not user_likes_media.deleted",
        {1: 3, 2: 3},
    ),
    "merge": (
        "merge into user_likes_media l using (values (1, 1), (3, 2), (8, 3)) v (u, m)"
        " on l.user_id = v.u and l.media_id = v.m"
        " when matched and not deleted then delete"
        " when matched then update set deleted = false"
        " when not matched then insert (user_id, media_id) values (v.u, v.m)",
        {1: 2, 2: 3, 3: 1},
    ),
    "delete": ("delete from user_likes_media where user_id = 1", {1: 2, 2: 1}),
    "delete of all": ("delete from user_likes_media", {}),
    "delete of a row that does not count": ("delete from user_likes_media where deleted or media_id is null", START),
    "cascade from the parent": ("delete from media where id in (1, 2)", {}),
    "cascade of a changed parent": ("update media set id = 40 where id = 1", {40: 3, 2: 2}),
    "move to another key": (
        "update user_likes_media set media_id = 3 where user_id = 1 and media_id = 2",
        {1: 3, 2: 1, 3: 1},
    ),
    "move of several": ("update user_likes_media set media_id = 3 where media_id = 1", {3: 3, 2: 2}),
    "swap": ("update user_likes_media set media_id = 3 - media_id, user_id = user_id + 100", {1: 2, 2: 3}),
    "move from null": ("update user_likes_media set media_id = 5 where media_id is null", {**START, 5: 1}),
    "move to null": ("update user_likes_media set media_id = null where user_id = 1", {1: 2, 2: 1}),
    "predicate becomes false": ("update user_likes_media set deleted = true where user_id = 1", {1: 2, 2: 1}),
    "predicate becomes true": ("update user_likes_media set deleted = false", {1: 3, 2: 3}),
    "key and predicate": ("update user_likes_media set deleted = false, media_id = 7 where deleted", {**START, 7: 1}),
    "predicate true for another key": ("update user_likes_media set deleted = not deleted, media_id = 8", {8: 1}),
    "unrelated update": ("update user_likes_media set user_id = user_id + 100", START),
    "writes in a WITH": (
        "with gone as (delete from user_likes_media where media_id = 1 returning user_id)"
        " insert into user_likes_media (user_id, media_id) select user_id, 4 from gone",
        {2: 2, 4: 3},
    ),
    "truncate": ("truncate user_likes_media", {}),
    "truncate of the parent": ("truncate media cascade", {}),
}


@pytest.mark.parametrize(("statement", "expected"), EVENTS.values(), ids=EVENTS.keys())
def test_every_event_is_counted(conn: Connection, likes: Counter, statement: str, expected: dict[int, int]) -> None:
    """After each kind of statement the counts are those expected, and those of count(*)."""
    if "media_id = 8" in statement:
        conn.execute("alter table user_likes_media drop constraint user_likes_media_user_id_media_id_key")
    conn.execute(statement.encode())
    assert pairs(conn, TRACKED) == expected
    assert pairs(conn, COUNTED) == expected
    assert likes.verify(conn) == {}


def test_copy_is_counted(conn: Connection, likes: Counter) -> None:
    """COPY counts its rows as one statement: one change of each key."""
    before = versions(conn)
    with conn.cursor().copy("copy user_likes_media (user_id, media_id) from stdin") as copy:
        for user in range(100, 150):
            copy.write_row((user, 1 + user % 2))
    assert pairs(conn, TRACKED) == pairs(conn, COUNTED) == {1: 28, 2: 27}
    assert versions(conn) == {1: before[1] + 1, 2: before[2] + 1}


def test_a_transaction_sees_its_own_changes_and_a_rollback_undoes_them(conn: Connection, likes: Counter) -> None:
    """Counts change with the statement, and go back with the savepoint and with the transaction."""
    with conn.transaction(force_rollback=True):
        conn.execute("delete from user_likes_media where media_id = 1")
        with conn.transaction(force_rollback=True):
            conn.execute("insert into user_likes_media (user_id, media_id) values (4, 1), (4, 6)")
            assert (likes.count(conn, 1), likes.count(conn, 6)) == (1, 1)
        assert (likes.count(conn, 1), likes.count(conn, 6)) == (0, 0)
    assert pairs(conn, TRACKED) == pairs(conn, COUNTED) == START


def test_a_count_is_read_whatever_rows_the_connection_makes(conn: Connection, likes: Counter) -> None:
    """count() returns an int on a connection with its own row factory, and 0 for what was never counted."""
    conn.row_factory = dict_row
    assert [likes.count(conn, key) for key in (1, 2, 3, None)] == [3, 2, 0, 0]


def test_each_change_of_a_count_is_one_version(conn: Connection, likes: Counter) -> None:
    """A statement moves a version by one when the count changes, however many rows it has, and not otherwise."""
    assert versions(conn) == {1: 1, 2: 1}
    conn.execute("delete from user_likes_media where media_id = 1")
    assert versions(conn) == {1: 2, 2: 1}
    conn.execute("update user_likes_media set user_id = user_id + 100")
    assert versions(conn) == {1: 2, 2: 1}
    conn.execute("delete from media")
    assert versions(conn) == {1: 2, 2: 2}


def test_a_row_is_zeroed_and_stays(conn: Connection, likes: Counter) -> None:
    """A count that ends keeps its row, so that its version goes on."""
    conn.execute("delete from user_likes_media")
    assert pairs(conn, "select media_id, count from media_likes") == {1: 0, 2: 0}


@pytest.mark.parametrize("isolation", psycopg.IsolationLevel)
def test_truncate_begins_versions_above_all_earlier_ones(
    conn: Connection, likes: Counter, isolation: psycopg.IsolationLevel
) -> None:
    """After a TRUNCATE every version, of known and of new keys, is above any that was seen before it."""
    highest = 0
    for _ in range(3):
        conn.execute("insert into user_likes_media (user_id, media_id) select 500, id from media")
        assert min(versions(conn).values(), default=0) > highest
        highest = max(versions(conn).values())
        conn.isolation_level = isolation
        with conn.transaction():
            conn.execute("truncate user_likes_media")
        assert pairs(conn, TRACKED) == {}
        assert min(versions(conn).values(), default=highest + 1) > highest
        conn.isolation_level = None


def test_truncate_from_an_old_snapshot_leaves_no_count(connect: Connect, conn: Connection, likes: Counter) -> None:
    """A TRUNCATE zeroes counts that its own snapshot is too old to see."""
    old = connect()
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with old.transaction():
        assert likes.count(old, 6) == 0
        conn.execute("insert into user_likes_media (user_id, media_id) values (1, 6)")
        old.execute("truncate user_likes_media")
    assert likes.verify(conn) == {}
    assert likes.count(conn, 6) == 0


def test_changes_that_skip_triggers_are_found_and_mended(conn: Connection, likes: Counter) -> None:
    """Drift of a known, a new and an emptied key is reported and added; each mended key has a new version."""
    conn.execute("set session_replication_role = replica")
    conn.execute("delete from user_likes_media where media_id = 1")
    conn.execute("insert into user_likes_media (user_id, media_id) values (7, 2), (8, 2), (7, 4)")
    conn.execute("set session_replication_role = origin")
    drift = {1: Drift(3, 0), 2: Drift(2, 4), 4: Drift(0, 1)}
    before = versions(conn)
    assert likes.verify(conn) == drift
    assert likes.repair(conn) == drift
    assert likes.verify(conn) == likes.repair(conn) == {}
    assert pairs(conn, TRACKED) == pairs(conn, COUNTED) == {2: 4, 4: 1}
    assert versions(conn) == {1: before[1] + 1, 2: before[2] + 1, 4: 1}
    assert drift[1].difference == -3


def test_a_count_below_zero_is_kept_and_mended(conn: Connection, likes: Counter) -> None:
    """A count that drifted too low passes below zero, so that adding the difference still makes it exact."""
    conn.execute("update media_likes set count = 0")
    conn.execute("delete from user_likes_media where media_id = 1 and user_id = 1")
    assert likes.count(conn, 1) == -1
    likes.repair(conn)
    assert likes.count(conn, 1) == 2


def test_progress_counts_batches(conn: Connection, likes: Counter) -> None:
    """A thousand keys are a batch, and every key between the batches is looked at."""
    conn.execute("insert into media select generate_series(10, 2500)")
    conn.execute("insert into user_likes_media (user_id, media_id) select 5, id from media")
    conn.execute("update media_likes set count = count + 1")
    seen: list[tuple[int, int]] = []
    assert len(likes.repair(conn, progress=lambda done, total: seen.append((done, total)))) == 2500
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert likes.verify(conn, progress=lambda done, total: seen.append((done, total))) == {}
    assert seen[3:] == seen[:3]


def test_without_an_index_there_is_one_batch(conn: Connection, likes: Counter) -> None:
    """A source without an index on the key is read once, not once for every thousand keys."""
    conn.execute("drop index user_likes_media_media_id_idx")
    conn.execute("alter table user_likes_media drop constraint user_likes_media_media_id_fkey")
    conn.execute("insert into user_likes_media (user_id, media_id) select 5, generate_series(10, 2500)")
    conn.execute("update media_likes set count = count + 1")
    seen: list[tuple[int, int]] = []
    assert len(likes.repair(conn, progress=lambda done, total: seen.append((done, total)))) == 2493
    assert seen == [(1, 1)]


def test_a_repair_leaves_the_path_of_the_connection(conn: Connection, likes: Counter) -> None:
    """In the caller's transaction, the search_path is the caller's again after repair, verify and sql()."""
    conn.execute("create schema app; set search_path = app")
    with conn.transaction():
        likes.repair(conn)
        likes.verify(conn)
        conn.execute(likes.sql().encode())
        assert conn.execute("show search_path").fetchall() == [("app",)]


def test_a_populated_source_is_backfilled(conn: Connection) -> None:
    """sql() counts the rows that are there, in a transaction or not, and changes nothing the second time."""
    conn.execute(LIKES)
    likes = likes_counter()
    with conn.transaction(force_rollback=True):
        conn.execute(likes.sql().encode())
        assert pairs(conn, TRACKED) == START
    for _ in range(2):
        conn.execute(likes.sql().encode())
        assert pairs(conn, TRACKED) == START
        assert versions(conn) == {1: 1, 2: 1}
    conn.execute("insert into user_likes_media (user_id, media_id) values (4, 1)")
    assert likes.count(conn, 1) == 4


def test_create_backfills_too(conn: Connection) -> None:
    """create() does what sql() does."""
    conn.execute(LIKES)
    seen: list[tuple[int, int]] = []
    likes_counter().create(conn, progress=lambda done, total: seen.append((done, total)))
    conn.execute("insert into user_likes_media (user_id, media_id) values (4, 1)")
    assert pairs(conn, TRACKED) == pairs(conn, COUNTED)
    assert seen == [(1, 1)]


def test_a_changed_predicate_is_applied(conn: Connection, likes: Counter) -> None:
    """sql() of another `where` recounts, and later changes are counted by it."""
    all_likes = likes_counter(where=None)
    assert all_likes.verify(conn) == {2: Drift(2, 3)}
    conn.execute(all_likes.sql().encode())
    conn.execute("insert into user_likes_media (user_id, media_id, deleted) values (4, 1, true)")
    assert pairs(conn, TRACKED) == {1: 4, 2: 3}


def test_triggers_that_were_disabled_are_enabled_again(conn: Connection, likes: Counter) -> None:
    """sql() mends what happened while the triggers were disabled, and ends that state."""
    conn.execute("alter table user_likes_media disable trigger user")
    conn.execute("delete from user_likes_media where media_id = 1")
    conn.execute(likes.sql().encode())
    conn.execute("delete from user_likes_media where media_id = 2")
    assert pairs(conn, TRACKED) == {}


@pytest.mark.parametrize(
    ("key_type", "keys"),
    [
        ("varchar(20)", ["o'hara", "100%", "ünï", "A", "a", ""]),
        ("uuid", ["00000000-0000-0000-0000-00000000000a", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
        ("date", ["2024-02-29", "1999-12-31"]),
        ("boolean", ["true", "false"]),
        ("bytea", [r"\x00ff", r"\x"]),
        ("smallint", ["-3", "7"]),
    ],
)
def test_the_key_has_the_type_of_the_source(connect: Connect, key_type: str, keys: list[str]) -> None:
    """The counter's key column is typed as the source's, and its values are read back under their Python type."""
    conn = connect()
    conn.execute(f"create table votes (k {key_type}); create index on votes (k)".encode())
    votes = counter("tally", of="votes", by="k")
    conn.execute(votes.sql().encode())
    for times, key in enumerate(keys, start=1):
        conn.execute(f"insert into votes select %s::{key_type} from generate_series(1, %s)".encode(), (key, times))
    kinds = conn.execute(
        "select distinct format_type(atttypid, atttypmod) from pg_attribute"
        " where attname = 'k' and attrelid in ('votes'::regclass, 'tally'::regclass)"
    )
    assert len(kinds.fetchall()) == 1
    stored = pairs(conn, "select k, count from tally")
    assert sorted(stored.values()) == list(range(1, len(keys) + 1))
    assert {key: votes.count(conn, key) for key in stored} == stored
    assert votes.verify(conn) == {}


def test_awkward_names_work(connect: Connect) -> None:
    """Quotes, spaces, percent signs, dots of a schema, capitals and key words are names like any other."""
    conn = connect()
    schema, source, by = (
        sql.Identifier('Odd "schema"'),
        sql.Identifier('Odd "schema"', "select 100%"),
        sql.Identifier("N %s"),
    )
    conn.execute(sql.SQL("create schema {}").format(schema))
    conn.execute(sql.SQL("create table {} ({} int, key int, n int, stored int, tg_op text)").format(source, by))
    where = "coalesce(tg_op, '{}') <> 'x%' and key is null and n is null and stored is null -- all"
    odd = counter("""Odd "schema".it's $counter$ {0}""", of='Odd "schema".select 100%', by="N %s", where=where)
    conn.execute(odd.sql().encode())
    conn.execute(sql.SQL("insert into {} values (7), (7), (8)").format(source))
    conn.execute(sql.SQL("update {} set tg_op = 'x%' where {} = 8").format(source, by))
    assert [odd.count(conn, key) for key in (7, 8)] == [2, 0]
    conn.execute(sql.SQL("truncate {}").format(source))
    conn.execute(sql.SQL("insert into {} values (7)").format(source))
    assert odd.count(conn, 7) == 1
    assert odd.verify(conn) == odd.repair(conn) == {}


def test_two_counters_of_one_source_do_not_meet(conn: Connection, likes: Counter) -> None:
    """Counters of one table under one name in two schemas, and by another column, all count."""
    conn.execute("create schema stats")
    others = [likes_counter(table="stats.media_likes"), likes_counter(table="user_likes", by="user_id", where=None)]
    for other in others:
        conn.execute(other.sql().encode())
    conn.execute("insert into user_likes_media (user_id, media_id) values (4, 1)")
    assert [declared.count(conn, 1) for declared in (likes, *others)] == [4, 4, 2]


def test_a_writer_needs_no_rights_on_the_counter(conn: Connection, likes: Counter, database: str) -> None:
    """A role that may write the source is counted, whatever its search_path, and cannot change counts itself."""
    role = sql.Identifier(f"writer_{database}")
    conn.execute(sql.SQL("create role {}").format(role))
    try:
        conn.execute(sql.SQL("grant select, insert, truncate on user_likes_media to {}").format(role))
        with conn.transaction():
            conn.execute(sql.SQL("set local role {}").format(role))
            conn.execute("set local search_path = pg_temp")
            conn.execute("insert into public.user_likes_media (user_id, media_id) values (4, 1)")
        with conn.transaction(force_rollback=True):
            conn.execute(sql.SQL("set local role {}").format(role))
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("update public.media_likes set count = 0")
        assert likes.count(conn, 1) == 4
    finally:
        conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))


def test_a_predicate_means_the_same_to_everybody(conn: Connection) -> None:
    """Triggers, backfill, verify and repair read `where` on their own search_path, not on that of the session."""
    likes = likes_counter(where="abs(user_id) < 3")
    conn.execute("create schema app; create function app.abs(int) returns int immutable language sql as 'select 9'")
    conn.execute("set search_path = app, public, pg_catalog")
    conn.execute(LIKES)
    conn.execute(likes.sql().encode())
    conn.execute("insert into user_likes_media (user_id, media_id) values (-1, 1)")
    assert pairs(conn, TRACKED) == {1: 3, 2: 2}
    assert likes.verify(conn) == likes.repair(conn) == {}


REFUSED_SOURCES = {
    "partitioned": "create table odd (media_id int, deleted bool) partition by list (media_id)",
    "a partition": "create table whole (media_id int, deleted bool) partition by list (media_id);"
    "create table odd partition of whole default",
    "a parent": "create table odd (media_id int, deleted bool); create table child () inherits (odd)",
    "a child": "create table base (media_id int, deleted bool); create table odd () inherits (base)",
    "a view": "create view odd as select 1 as media_id, false as deleted",
    "unlogged": "create unlogged table odd (media_id int, deleted bool)",
}


@pytest.mark.parametrize("ddl", REFUSED_SOURCES.values(), ids=REFUSED_SOURCES.keys())
def test_a_source_whose_changes_could_pass_unseen_is_refused(connect: Connect, ddl: str) -> None:
    """What statement triggers do not see, or a crash would empty, is not counted, and nothing is created."""
    conn = connect()
    conn.execute(ddl.encode())
    with pytest.raises(psycopg.errors.WrongObjectType, match=r"'media_likes' cannot count 'odd'"):
        conn.execute(likes_counter(of="odd").sql().encode())
    assert conn.execute("select to_regclass('media_likes'), to_regproc('media_likes_track')").fetchone() == (None, None)


@pytest.mark.parametrize(
    "where",
    [
        "created > now()",
        "exists (select from media)",
        "no_such_column",
        "deleted; drop table media",
        "app_only(deleted)",
    ],
)
def test_a_predicate_that_no_trigger_can_keep_is_refused(conn: Connection, where: str) -> None:
    """A predicate that changes by itself, or does not compile, fails before writers of the source could meet it."""
    conn.execute("alter table user_likes_media add created timestamptz")
    conn.execute("create function app_only(boolean) returns boolean immutable language sql as 'select $1'")
    with pytest.raises(psycopg.Error):
        conn.execute(likes_counter(where=where).sql().encode())
    conn.execute(LIKES)
    assert conn.execute("select to_regclass('media_likes')").fetchone() == (None,)


OTHER_TABLES = {
    "no key": "create table media_likes (media_id bigint, count bigint, version bigint)",
    "another type": "create table media_likes (media_id int primary key, count bigint, version bigint)",
    "no version": "create table media_likes (media_id bigint primary key, count bigint)",
}


@pytest.mark.parametrize("ddl", OTHER_TABLES.values(), ids=OTHER_TABLES.keys())
def test_a_table_that_is_no_counter_is_left_alone(conn: Connection, ddl: str) -> None:
    """A table of that name which could not hold the counts is refused before it has triggers."""
    conn.execute(ddl.encode())
    with pytest.raises(psycopg.errors.DuplicateTable, match="is no counter of 'user_likes_media'"):
        conn.execute(likes_counter().sql().encode())
    conn.execute(LIKES)
    assert conn.execute("select count(*) from media_likes").fetchone() == (0,)


def test_a_counter_of_another_table_is_not_taken_over(conn: Connection, likes: Counter) -> None:
    """Two sources cannot count into one table."""
    conn.execute("create table other (media_id bigint, deleted boolean)")
    with pytest.raises(psycopg.errors.DuplicateObject, match="counts another table than 'other'"):
        conn.execute(likes_counter(of="other").sql().encode())
    assert pairs(conn, TRACKED) == START


@pytest.mark.parametrize("postgres_version", [18], indirect=True, ids=["pg18"])
def test_a_virtual_column_is_refused(connect: Connect) -> None:
    """A column that no transition table holds cannot be counted by; PostgreSQL 18 was the first to have such."""
    conn = connect()
    conn.execute("create table odd (a int, media_id int generated always as (a + 1) virtual, deleted bool)")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        conn.execute(likes_counter(of="odd").sql().encode())
