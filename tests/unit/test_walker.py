"""The short way of regular frames: it takes what it takes exactly as the long way would, and leaves the rest alone."""

import ast
import importlib
import inspect
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leasecache._accel import IMPL
from leasecache.errors import SourceError
from leasecache.invalidation import _pure_pgoutput, router
from leasecache.invalidation.router import Router
from leasecache.invalidation.stream import Event, Stream
from leasecache.rules import Rule, RuleSet
from tests.unit.test_stream import captured, data, keepalive

NONE, UNCHANGED = b"n", b"u"
KINDS = {"a": "int", "b": "str", "c": "bytes", "d": "bool", "e": "uuid", "f": "date"}
COLUMNS = "abcdefg"


def compiled() -> ModuleType | None:
    """Return the compiled walker's module, None where nothing is compiled."""
    try:
        return importlib.import_module("leasecache.invalidation._pgoutput")
    except ImportError:
        if os.environ.get("LEASECACHE_EXT") == "required":
            raise
        return None


COMPILED = compiled()


def rule(template: str, columns: tuple[str, ...] | None = None, stale_for: float = 0.0, **fields: str) -> Rule:
    """Return a rule for the table t, whose fields have the kinds of their columns."""
    return Rule(
        function=f"get_{template}",
        template=template,
        kinds={name: KINDS[column] for name, column in fields.items()},
        schema="public",
        table="t",
        fields=fields,
        columns=columns,
        stale_for=stale_for,
    )


RULES = (
    rule("one:{x}", x="a"),
    rule("two:{x}:{y}!", columns=("g",), stale_for=5.0, x="b", y="a"),
    rule("same:{x}", stale_for=60.0, x="a"),
    rule("same:{x}", stale_for=30.0, x="a"),
    rule("rest:{c}:{d}:{e}:{f}", c="c", d="d", e="e", f="f"),
)


def relation(relid: int, table: str, keys: str = "", columns: str = COLUMNS) -> bytes:
    """Return the description of a table."""
    described = b"".join(
        struct.pack("!B", column in keys) + column.encode() + b"\0" + struct.pack("!Ii", 25, -1) for column in columns
    )
    return (
        b"R"
        + struct.pack("!I", relid)
        + b"public\0"
        + table.encode()
        + b"\0f"
        + struct.pack("!h", len(columns))
        + described
    )


def row(values: tuple[bytes, ...]) -> bytes:
    """Return a tuple; a value is "n", "u", or "=" and its text."""
    sent = [v if v[:1] in b"nu" else b"t" + struct.pack("!i", len(v) - 1) + v[1:] for v in values]
    return struct.pack("!h", len(sent)) + b"".join(sent)


def text(*texts: bytes) -> st.SearchStrategy[bytes]:
    """Draw what a column may hold: one of these texts mostly."""
    return st.sampled_from([*(b"=" + one for one in texts), NONE, UNCHANGED]) | st.binary(max_size=3).map(b"=".__add__)


ROWS = st.tuples(
    text(b"1", b"2", b"-30"),
    text(b"x", b"y z", "ü".encode(), b"l" * 300),
    text(b"\\x00ff", b"\\x"),
    text(b"t", b"f"),
    text(b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    text(b"2024-02-29"),
    text(b"p", b"q"),
)
RELIDS = st.sampled_from([1, 2, 3, 4])  # all columns in the identity, some, no rule, one that was never described
TABLES = (relation(1, "t", COLUMNS), relation(2, "t", "ab"), relation(3, "other"))


def change(relid: int, old_kind: bytes, old: tuple[bytes, ...], new: tuple[bytes, ...]) -> bytes:
    """Return an insert, update or delete; `old_kind` is I, N, K, O or D."""
    head = struct.pack("!I", relid)
    if old_kind == b"I":
        return b"I" + head + b"N" + row(new)
    if old_kind == b"D":
        return b"D" + head + b"K" + row(old)
    return b"U" + head + (b"" if old_kind == b"N" else old_kind + row(old)) + b"N" + row(new)


def begin(xid: int) -> bytes:
    """Return a Begin."""
    return b"B" + struct.pack("!QqI", 1000 + xid, 5, xid)


def commit(xid: int) -> bytes:
    """Return its Commit."""
    return b"C" + struct.pack("!BQQq", 0, 1000 + xid, 1010 + xid, 10**6 * xid)


KINDS_OF_CHANGE = st.sampled_from([b"I", b"N", b"K", b"O", b"D"])
CHANGES = st.builds(change, RELIDS.filter(lambda relid: relid < 4), KINDS_OF_CHANGE, ROWS, ROWS)
MESSAGE = b"M" + struct.pack("!BQ", 1, 5) + b"leasecache\0" + struct.pack("!i", 11) + b"1\n0 shop:ab"
OTHERS = st.sampled_from([MESSAGE, TABLES[0], TABLES[1], b"T" + struct.pack("!iBI", 1, 0, 3)])
TRANSACTIONS = st.lists(CHANGES | CHANGES | CHANGES | OTHERS, max_size=8)


def frames_of(transactions: list[list[bytes]]) -> list[bytes]:
    """Return the frames that a server would send."""
    frames = [data(payload) for payload in TABLES]
    for xid, payloads in enumerate(transactions, 1):
        frames += [data(payload, xid) for payload in (begin(xid), *payloads, commit(xid))]
    return [*frames, keepalive(5000)]


def fed(
    walker: ModuleType, frames: Sequence[bytes], cuts: list[int], most_keys: int
) -> tuple[list[Event], str, object]:
    """Return what a stream makes of the frames in batches: its events, its error, and where it stands."""
    routes = Router(RuleSet(namespace="shop", rules=RULES))
    routes.walker = walker.Walker()
    stream = Stream(routes, most_keys)
    events: list[Event] = []
    error = ""
    try:
        for start, end in zip([0, *cuts], [*cuts, len(frames)], strict=True):
            events += stream.feed(frames[start:end] if cuts else frames)
    except SourceError as raised:
        error = str(raised)
    return events, error, (stream.received, stream.touched) if not error else None


def same(frames: list[bytes], cuts: list[int], most_keys: int = 100) -> list[Event]:
    """Check that both ways make the same of the frames, and return it."""
    long = fed(_pure_pgoutput, frames, cuts, most_keys)
    if COMPILED is not None:
        assert fed(COMPILED, frames, cuts, most_keys) == long
    return long[0]


@given(st.lists(TRANSACTIONS, max_size=5), st.sampled_from([0, 1, 3, 100]), st.data())
def test_transactions(transactions: list[list[bytes]], most_keys: int, draws: st.DataObject) -> None:
    """Whatever rows come in whatever batches, both ways touch the same, count the same and stop at the same."""
    frames = frames_of(transactions)
    same(frames, sorted(draws.draw(st.lists(st.integers(0, len(frames)), max_size=3))), most_keys)


@given(st.lists(TRANSACTIONS, min_size=1, max_size=3), st.data())
def test_damage(transactions: list[list[bytes]], draws: st.DataObject) -> None:
    """Frames with bytes replaced, cut or added give the same results, or the same errors, both ways."""
    frames = frames_of(transactions)
    for _ in range(draws.draw(st.integers(1, 3))):
        at = draws.draw(st.integers(0, len(frames) - 1))
        frame = bytearray(frames[at])
        kind = draws.draw(st.sampled_from(["flip", "cut", "add", "drop"]))
        if kind == "flip" and frame:
            frame[draws.draw(st.integers(0, len(frame) - 1))] = draws.draw(st.integers(0, 255))
        elif kind == "cut":
            del frame[draws.draw(st.integers(0, len(frame))) :]
        elif kind == "add":
            frame += draws.draw(st.binary(max_size=5))
        frames[at : at + 1] = [] if kind == "drop" else [bytes(frame)]
        if not frames:
            return
    same(frames, [])


@given(st.lists(st.binary(max_size=60), max_size=5))
@example([b"w"])
def test_any_bytes(frames: list[bytes]) -> None:
    """Any bytes are taken, or are the same SourceError both ways."""
    same(frames, [])
    same([data(begin(1)), *(data(frame) for frame in frames)], [])


@pytest.mark.parametrize("version", [16, 18])
def test_real_frames_cut_anywhere(version: int) -> None:
    """Each message of a real server, cut at any point, is left to the long way, which refuses it."""
    payloads = {payload[:6]: payload for payload in captured(version) if payload[:1] in b"BCIUD"}.values()
    for payload in payloads:
        opening = [] if payload[:1] == b"B" else [data(begin(1))]
        for length in range(len(payload)):
            frames = [*opening, data(payload[:length])]
            assert len(same(frames, [])) == 0


def test_regular_frames_go_the_short_way() -> None:
    """Begins, commits and changes whose keys the stream tells are taken without the router, under each identity."""
    rows = ((b"=1", b"=x", b"=\\x00", b"=t", b"=a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", b"=2024-02-29", b"n"),) * 2
    kinds = (b"I", b"N", b"K", b"O", b"D")
    frames = [
        data(begin(1)),
        *(data(change(relid, kind, *rows)) for kind in kinds for relid in (1, 3)),
        data(commit(1)),
    ]
    routes = Router(RuleSet(namespace="shop", rules=RULES))
    stream = Stream(routes)
    stream.feed([data(payload) for payload in TABLES])
    taken = routes.walker.walk(frames, 0, stream._run, 100)
    assert taken == (len(frames) if IMPL == "c" else 0)


def test_the_twins_offer_the_same() -> None:
    """Stub, pure and compiled twin have the same names with the same parameters and documentation."""
    stub = ast.parse((Path(router.__file__).parent / "_pgoutput.pyi").read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    defined = {node.name: node for node in stub.body if isinstance(node, kinds)}
    for twin in filter(None, (_pure_pgoutput, COMPILED)):
        own = {name for name, value in vars(twin).items() if getattr(value, "__module__", "") == twin.__name__}
        assert {name for name in own if not name.startswith("_")} == {*defined}
        for name, node in defined.items():
            alike(getattr(twin, name), node)
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("__"):  # as of any sequence
                    alike(getattr(getattr(twin, name), member.name), member)


def alike(found: object, node: ast.ClassDef | ast.FunctionDef) -> None:
    """Hold what a twin has against its stub."""
    assert inspect.getdoc(found) == ast.get_docstring(node)
    if isinstance(node, ast.FunctionDef):
        assert list(inspect.signature(found).parameters) == [argument.arg for argument in node.args.args]  # type: ignore[arg-type]


KEYS = st.dictionaries(st.binary(max_size=2), st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 60.0]), max_size=8)


@given(KEYS, KEYS)
def test_merging(keys: dict[bytes, float], more: dict[bytes, float]) -> None:
    """Of two times for one key the shorter holds, both ways, and what is merged stays as it is."""
    for twin in filter(None, (_pure_pgoutput, COMPILED)):
        merged, added = dict(keys), dict(more)
        twin.merge(merged, added)
        both = [keys, more]
        assert merged == {key: min(one[key] for one in both if key in one) for key in {*keys, *more}}
        assert added == more


@given(KEYS, st.sampled_from([None, b"", b"00ff:"]), st.booleans())
def test_naming(keys: dict[bytes, float], prefix: bytes | None, plain: bool) -> None:
    """Keys are called by their prefix, as they are, or both, in groups by their time."""
    for twin in filter(None, (_pure_pgoutput, COMPILED)):
        groups: dict[float, list[bytes]] = {60.0: [b"there"]}
        twin.name(groups, keys, prefix, plain)
        expected: dict[float, list[bytes]] = {60.0: [b"there"]}
        for key, stale_for in keys.items():
            names = ([] if prefix is None else [prefix + key]) + ([key] if plain else [])
            expected.setdefault(stale_for, []).extend(names)
        assert groups == expected


def test_a_key_that_is_too_long_for_a_generation_has_none() -> None:
    """A key of 221 bytes is no function's: with a generation memcached would refuse it, and with it the whole batch."""
    for twin in filter(None, (_pure_pgoutput, COMPILED)):
        groups: dict[float, list[bytes]] = {}
        twin.name(groups, {b"k" * 220: 0.0, b"l" * 221: 0.0}, b"0123456789abcdef:", True)
        assert groups == {0.0: [b"0123456789abcdef:" + b"k" * 220, b"k" * 220, b"l" * 221]}


class Connection:
    """What psycopg's connection would be, of a libpq that nobody finds."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.pgconn_ptr = 1

    def get_copy_data(self, nonblocking: int) -> tuple[int, memoryview]:
        """Give the next answer."""
        size, frame = self.answers.pop(0)
        return size, memoryview(frame)


@pytest.mark.parametrize("status", [0, -1, -2])
def test_frames_without_a_libpq_of_our_own(status: int) -> None:
    """Where psycopg's libpq is not found its frames are taken through psycopg, up to the limit, and walk as well."""
    sent = [data(payload) for payload in (*TABLES, begin(1), *[change(1, b"I", (), (b"=1",) * 7)] * 600, commit(1))]
    for twin in filter(None, (_pure_pgoutput, COMPILED)):
        connection = Connection(*((len(frame), frame) for frame in sent), (status, b""))
        frames = twin.Frames()
        frames.collect(connection, 5)
        assert (len(frames), frames.status) == (5, 0)
        frames.collect(connection, 10_000)
        assert (len(frames), frames.status) == (len(sent), status)
        assert [frames[at] for at in range(len(frames))] == sent
        with pytest.raises(IndexError):
            frames[len(sent)]
        events, error, _ = fed(twin, frames, [], 100)
        assert (len(events), error) == (1, "")
