"""Keys through real Postgres: what a column prints in the replication stream renders to the application's key."""

import datetime
import enum
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from leasecache.invalidation.pgoutput import Insert, decode
from leasecache.invalidation.source import Replication
from leasecache.invalidation.stream import Data, parse_frame
from leasecache.keys import KINDS, FieldType
from leasecache.lab import wait_until
from tests.fix_servers import PostgresPair
from tests.twins import TWINS
from tests.values import TEXTS, VALUES

Connection = psycopg.Connection[Any]


class Mood(enum.Enum):
    """An Enum whose values are the labels of a Postgres enum type."""

    PLAIN = "plain"
    ODD = "it's: odd, ü"


# column → its type, how the key field is rendered, the values that fit
COLUMNS: dict[str, tuple[str, FieldType, st.SearchStrategy[Any]]] = {
    "i2": ("int2", FieldType(kind="int"), st.integers(-(2**15), 2**15 - 1)),
    "i4": ("int4", FieldType(kind="int"), st.integers(-(2**31), 2**31 - 1)),
    "i8": ("int8", FieldType(kind="int"), st.integers(-(2**63), 2**63 - 1)),
    "t": ("text", FieldType(kind="str"), TEXTS | st.text(st.characters(codec="utf-8", min_codepoint=1), min_size=300)),
    "v": ("varchar(40)", FieldType(kind="str"), TEXTS.map(lambda text: text[:40])),
    "b": ("bool", FieldType(kind="bool"), VALUES["bool"]),
    "u": ("uuid", FieldType(kind="uuid"), VALUES["uuid"]),
    "d": ("date", FieldType(kind="date"), VALUES["date"]),
    "y": ("bytea", FieldType(kind="bytes"), VALUES["bytes"]),
    "m": ("mood", FieldType(kind="str", enum=Mood), st.sampled_from(Mood)),
}
BATCHES = st.lists(st.tuples(*(st.none() | values for _, _, values in COLUMNS.values())), min_size=1, max_size=30)
through_postgres = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
)


@pytest.fixture
def conn(postgres_pair: PostgresPair, database: str) -> Iterator[Connection]:
    """A connection to a database with a table of all column types, published."""
    with postgres_pair.primary.connect(database) as connection:
        connection.execute("create type mood as enum ('plain', 'it''s: odd, ü')")
        names = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))  # type: ignore[arg-type]
            for name, (kind, _, _) in COLUMNS.items()
        )
        connection.execute(sql.SQL("create table rows ({})").format(names))
        connection.execute("create publication everything for table rows with (publish = 'insert')")
        yield connection


def insert(conn: Connection, rows: list[tuple[Any, ...]]) -> None:
    """Replace the table's rows by these, in one transaction."""
    marks = sql.SQL(", ").join(
        sql.SQL("%s::{}").format(sql.SQL(kind))  # type: ignore[arg-type]
        for kind, _, _ in COLUMNS.values()
    )
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("truncate rows")
        cursor.executemany(
            sql.SQL("insert into rows values ({})").format(marks),
            [[value.value if isinstance(value, Mood) else value for value in row] for row in rows],
        )


def assert_same_keys(rows: list[tuple[Any, ...]], printed: list[list[bytes | None]]) -> None:
    """Assert that each printed column renders to the key of the value that was inserted, on every twin."""
    assert len(printed) == len(rows)
    for twin in TWINS:
        for i, (name, (_, field, _)) in enumerate(COLUMNS.items()):
            kind = KINDS.index(field.kind)
            made = twin.Renderer("load", (b"k:", b""), (name,), (kind,), (True,), (field.enum,))
            for row, texts in zip(rows, printed, strict=True):
                assert made.from_text([texts[i]]) == made.from_python((row[i],))


def query_output(conn: Connection) -> list[list[bytes | None]]:
    """Return the table's rows as the types' output functions print them, in the daemon's settings."""
    conn.execute("set bytea_output = hex; set datestyle = ISO")
    with conn.cursor(binary=False) as cursor:
        cursor.execute("select * from rows order by ctid")
        result = cursor.pgresult
        assert result is not None
        return [[result.get_value(i, j) for j in range(result.nfields)] for i in range(result.ntuples)]


@through_postgres
@given(rows=BATCHES)
def test_output_functions(conn: Connection, rows: list[tuple[Any, ...]]) -> None:
    """Values of every type, NULL among them, come out of Postgres as text that gives the same key."""
    insert(conn, rows)
    assert_same_keys(rows, query_output(conn))


@pytest.fixture
def stream(conn: Connection, postgres_pair: PostgresPair, database: str) -> Iterator[Callable[[int], list[Any]]]:
    """The replication stream of the published table, as the daemon opens it: returns the next n inserted tuples."""
    slot = f"roundtrip_{uuid.uuid4().hex[:12]}"
    conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    replication = Replication(postgres_pair.primary.dsn(database))
    replication.start(slot, "everything")
    waiting: list[Any] = []

    def take(count: int) -> list[Any]:
        def arrived() -> bool:
            for frame in replication.read(1000):
                parsed = parse_frame(frame)
                message = decode(parsed.payload) if isinstance(parsed, Data) else None
                if isinstance(message, Insert):
                    waiting.append(list(message.new))
            return len(waiting) >= count

        wait_until(arrived, 60, f"{count} inserted rows in the stream")
        taken, waiting[:] = waiting[:count], waiting[count:]
        return taken

    yield take
    replication.close()


@through_postgres
@given(rows=BATCHES)
def test_replication_stream(conn: Connection, stream: Callable[[int], list[Any]], rows: list[tuple[Any, ...]]) -> None:
    """The daemon reads from the stream exactly the text whose key the application has."""
    insert(conn, rows)
    assert_same_keys(rows, stream(len(rows)))


@pytest.mark.parametrize(
    ("literal", "printed"),
    [("infinity", b"infinity"), ("0044-03-15 BC", b"0044-03-15 BC"), ("10000-01-01", b"10000-01-01")],
)
def test_dates_that_python_has_not(conn: Connection, literal: str, printed: bytes) -> None:
    """A date that no Python argument can be renders to some key of its own, and is no error in the daemon."""
    conn.execute("insert into rows (d) values (%s)", (literal,))
    (row,) = query_output(conn)
    text = row[list(COLUMNS).index("d")]
    assert text == printed
    keys = {
        twin.Renderer("load", (b"k:", b""), ("d",), (KINDS.index("date"),), (True,), (None,)).from_text([text])
        for twin in TWINS
    }
    assert len(keys) == 1
    assert keys != {b"k:" + datetime.date.max.isoformat().encode()}
