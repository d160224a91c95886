"""Codecs: which annotation gets which, what is refused with which fix, and that whatever cannot be read is a miss."""

import contextlib
import dataclasses
import datetime
import decimal
import enum
import os
import pickle
import subprocess
import sys
import typing
import uuid
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.codecs import RAW_FLAGS, Codec, DecodeError, make_codec
from leasecache.errors import DefinitionError


class Colour(enum.Enum):
    """An Enum as a value."""

    RED = "red"


@dataclasses.dataclass
class Media:
    """A dataclass as applications write them."""

    id: int
    title: str
    tags: list[str] = dataclasses.field(default_factory=list)
    parent: Optional["Media"] = None


class Point(msgspec.Struct, frozen=True):
    """A msgspec Struct."""

    x: float
    y: float


class Address(TypedDict):
    """A TypedDict."""

    street: str
    number: int


class LooseAddress(TypedDict):
    """A TypedDict with a field that can be anything."""

    extra: dict[str, Any]


class Pair(NamedTuple):
    """A NamedTuple."""

    left: int
    right: str


class Account(pydantic.BaseModel):
    """A Pydantic model whose field is read under one name and written under another."""

    model_config = pydantic.ConfigDict(extra="forbid")

    id: int
    owner: str = pydantic.Field(validation_alias="ownerName", serialization_alias="owner_name")
    opened: datetime.date

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        """Something that is written but cannot be read."""
        return f"{self.id} {self.owner}"


class Row:
    """A class without fields of its own, as an ORM maps them."""

    def __init__(self, id: int) -> None:  # noqa: A002
        self.id = id


@dataclasses.dataclass
class HoldsRow:
    """A dataclass with a field that has no encoding."""

    row: Row


def codec(annotation: Any = None, **options: Any) -> Codec:
    """Return the codec of an annotation."""
    return make_codec(annotation, **{"name": None, "version": 0, "compress_over": None, "where": "app.load", **options})


ID = uuid.UUID("0e37df36-f698-11e6-8dd4-cb9ced3df976")
NOW = datetime.datetime(2024, 2, 29, 12, 30, 1, 123456, tzinfo=datetime.timezone.utc)
VALUES: list[tuple[Any, Any, str]] = [
    (Media, Media(1, "ü", ["a"], Media(2, "b")), "msgpack"),
    (Media | None, Media(1, "a"), "msgpack"),
    (Point, Point(1.5, -2.0), "msgpack"),
    (list[Point], [Point(1.0, 2.0)], "msgpack"),
    (Address, {"street": "s", "number": 1}, "msgpack"),
    (Pair, Pair(1, "r"), "msgpack"),
    (Account, Account(id=1, ownerName="ann", opened=datetime.date(2024, 1, 1)), "pydantic"),
    (Account | None, Account(id=1, ownerName="ann", opened=datetime.date(2024, 1, 1)), "pydantic"),
    (int, -(2**63), "msgpack"),
    (float, 0.1, "msgpack"),
    (bool, False, "msgpack"),
    (dict[str, int], {"a": 1}, "msgpack"),
    (dict[int, list[str]], {1: ["a"]}, "msgpack"),
    (Mapping[str, int], {"a": 1}, "msgpack"),
    (Sequence[int], [1, 2], "msgpack"),
    (tuple[int, ...], (1, 2, 3), "msgpack"),
    (set[str], {"a", "b"}, "msgpack"),
    (int | str, "x", "msgpack"),
    (datetime.datetime, NOW, "msgpack"),
    (datetime.date, datetime.date(2024, 2, 29), "msgpack"),
    (uuid.UUID, ID, "msgpack"),
    (decimal.Decimal, decimal.Decimal("1.10"), "msgpack"),
    (Colour, Colour.RED, "msgpack"),
    (bytes, b"\x00\xff", "raw"),
    (bytes | None, b"", "raw"),
    (str, "ü\U0001f511", "str"),
    (Optional[str], "", "str"),  # noqa: UP045
]


def _named(part: Any) -> str:
    return str(sorted(part) if isinstance(part, set) else part)[:40]  # the same in every process that collects tests


@pytest.mark.parametrize(("annotation", "value", "name"), VALUES, ids=_named)
def test_round_trip(annotation: Any, value: Any, name: str) -> None:
    """A value comes back equal and of its own type, by the codec that its annotation determines."""
    made = codec(annotation)
    flags, body = made.encode(value)
    found = made.decode(flags, body)
    assert made.name == name
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("annotation", "value", "name"), VALUES, ids=_named)
def test_flags(annotation: Any, value: Any, name: str) -> None:
    """Client flags fit memcached's 32 bits and are never 0, which marks the stub of a lease."""
    made = codec(annotation, compress_over=0)
    for flags, _ in (made.encode(value), made.encode(None)):
        assert 0 < flags < 2**32


def test_raw_values_are_the_bytes_themselves() -> None:
    """bytes and str are stored as they are, readable by other clients."""
    assert codec(bytes).encode(b"\x00a")[1] == b"\x00a"
    assert codec(str).encode("ü")[1] == "ü".encode()
    assert 0 < RAW_FLAGS < 2**32


@pytest.mark.parametrize("made", [codec(Media | None), codec(bytes), codec(name="json"), codec(name="pickle")])
def test_none(made: Codec) -> None:
    """None is stored without a body and differs from every empty value."""
    flags, body = made.encode(None)
    assert body == b""
    assert made.decode(flags, body) is None


def test_explicit_codecs() -> None:
    """json and pickle take what has no precise annotation."""
    assert codec(name="json").decode(*codec(name="json").encode({"a": [1, None]})) == {"a": [1, None]}
    row = codec(name="pickle").decode(*codec(name="pickle").encode(Row(7)))
    assert (type(row), row.id) == (Row, 7)


@pytest.mark.parametrize(
    "annotation",
    [
        *(dict, list, set, frozenset, tuple, object, Any, None, type(None), Any | None, dict | None),
        *(typing.Dict, typing.List, typing.Optional[typing.Dict], Mapping, Sequence),  # noqa: UP006, UP045
        *(typing.TypeVar("T"), Row, Row | None, list[Row], dict[str, Row], HoldsRow, complex, typing.Iterator[int]),
        *(list[Account], "NotResolved", typing.NoReturn),
        *(
            list[Any],
            dict[str, Any],
            tuple[int, Any],
            list[dict],
            dict[str, list],
            list[object],
            list[typing.TypeVar("T")],
        ),
        *(
            dataclasses.make_dataclass("Open", [("data", Any)]),
            list[dict[str, Any] | None],
            LooseAddress,
            list[typing.TypeVar("T")],
        ),
    ],
    ids=str,
)
def test_refused_annotations(annotation: Any) -> None:
    """An annotation that does not determine an encoding is refused; pickle is never a default."""
    fix = r"; annotate it precisely, or pass codec='json' or codec='pickle'$"
    with pytest.raises(DefinitionError, match=r"^app.load: (?!.*app.load).*" + fix):
        codec(annotation)


def test_the_class_at_fault_is_named() -> None:
    """When a class deep within the annotation has no encoding, the message names that class."""
    with pytest.raises(DefinitionError, match=r"app.load: Row has no encoding of its own"):
        codec(dict[str, list[HoldsRow]])


def test_model_without_schema_refused() -> None:
    """A Pydantic model that cannot be described is refused when decorating."""

    class Odd(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        row: Row

    with pytest.raises(DefinitionError, match="Odd has no JSON schema; annotate it precisely, or pass codec="):
        codec(Odd)


def test_unknown_codec_refused() -> None:
    """A codec that does not exist is refused, and those that do are named."""
    with pytest.raises(DefinitionError, match="codec='yaml' is unknown; use 'json', 'pickle'"):
        codec(name="yaml")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        *((bytes, "text"), (bytes, bytearray(b"x")), (str, b"bytes"), (Media, Row(1)), (Account, Row(1))),
        *((Media, {"id": 1, "title": "a"}), (Media | None, {"id": 1}), (Point, (1.0, 2.0)), (Pair, (1, "r"))),
        *((list[Point], [Pair(1, "r")]), (int, True), (int, "1"), (dict[str, int], {"a": "b"}), (list[int], 5)),
        *((Address, {"street": "s"}), (tuple[int, int], (1,)), (Media, Media("1", "a")), (int, 2**64)),  # type: ignore[arg-type]
        (Account, Account.model_construct(id="x", owner="ann", opened=datetime.date(2024, 1, 1))),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_values_that_do_not_fit(annotation: Any, value: Any) -> None:
    """A value that is not what the annotation says is a TypeError at once, not bytes that nobody can read."""
    with pytest.raises(TypeError):
        codec(annotation).encode(value)


class Unloadable:
    """A class whose pickle cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_what_cannot_be_read_back_is_not_stored() -> None:
    """A value that would be a miss for every reader is a TypeError for its loader, whichever the codec."""
    with pytest.raises(TypeError, match="could not be read back: invalid literal for int"):
        codec(name="pickle").encode(Unloadable())
    with pytest.raises(TypeError, match="could not be read back: Expected `int`, got `bool`"):
        codec(int).encode(True)
    with pytest.raises(TypeError, match="expected Media, not dict"):
        codec(Media).encode({"id": 1, "title": "a"})


def test_values_that_do_not_pickle() -> None:
    """pickle raises nearly anything; for our caller it is a TypeError."""
    with pytest.raises(TypeError, match="pickle"):
        codec(name="pickle").encode(lambda: None)


def _media(fields: list[Any]) -> type:
    return dataclasses.make_dataclass("Media", fields)


def test_fingerprint_follows_the_type() -> None:
    """Every change of a type that changes what its bytes mean gives other flags, a deeper one included."""
    inner = _media([("id", int)])
    shapes = [
        _media([("id", int)]),
        _media([("id", str)]),
        _media([("id", int), ("title", str)]),
        _media([("id", int | None)]),
        _media([("key", int)]),
        dataclasses.make_dataclass("Outer", [("media", inner)]),
        dataclasses.make_dataclass("Outer", [("media", _media([("id", bool)]))]),
        list[int],
        int,
        datetime.date,
        datetime.datetime,
        Account,
        bytes,
        str,
    ]
    flags = [codec(shape).encode(None)[0] for shape in shapes]
    assert len(set(flags)) == len(flags)


def test_fingerprint_follows_the_version() -> None:
    """Raising `version` alone makes stored values unreadable, for every codec."""
    for options in ({"annotation": Media}, {"annotation": bytes}, {"name": "json"}, {"name": "pickle"}):
        old, new = codec(**options), codec(**options, version=1)
        with pytest.raises(DecodeError, match="another codec, type or version"):
            new.decode(*old.encode(None))


def test_fingerprint_is_the_same_everywhere() -> None:
    """Processes agree on the flags of a type, also where its default is a set, which each lists in its own order."""
    program = (
        "import dataclasses; from leasecache.codecs import make_codec\n"
        "tags = ('tags', frozenset[str], frozenset('abcdefg'))\n"
        "pairs = ('pairs', set[tuple[str, int]], frozenset({('a', 1), ('b', 2)}))\n"
        "M = dataclasses.make_dataclass('M', [tags, pairs])\n"
        "print(make_codec(M, name=None, version=0, compress_over=None, where='f').fingerprint)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_fingerprint_is_fixed() -> None:
    """Flags do not change from release to release; other flags would empty every cache."""
    assert codec(bytes).encode(b"")[0] == 0x10811259
    assert codec(str, version=3).encode("")[0] == 0x20346336


ALL = {
    "dataclass": codec(Media, compress_over=10),
    "struct": codec(Point),
    "typed dict": codec(Address),
    "list": codec(list[int]),
    "str": codec(str),
    "bytes": codec(bytes, compress_over=10),
    "pydantic": codec(Account),
    "json": codec(name="json"),
    "pickle": codec(name="pickle"),
}


@pytest.mark.parametrize("made", ALL.values(), ids=ALL.keys())
@given(flags=st.integers(0, 2**32 - 1), body=st.binary(max_size=60))
def test_foreign_bytes(made: Codec, flags: int, body: bytes) -> None:
    """Bytes with somebody else's flags are a DecodeError."""
    own = made.encode(None)[0]
    if flags & ~(3 << 26) == own & ~(3 << 26):
        return
    with pytest.raises(DecodeError):
        made.decode(flags, body)


_OPCODES = st.sampled_from(
    [b"\x80\x05", b"]", b"}", b"N", b"r\xff\xff\xff\xff", b"R", b"c__main__\nX\n", b"h\x01", b"("]
)
_BODIES = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(zlib.compress),
    st.lists(_OPCODES, max_size=6).map(lambda codes: b"".join(codes) + b"."),
    st.sampled_from([b"[" * 200_000, b"\x91" * 200_000, b'{"a":' * 100_000, b"\xff", b"NaN", b"1e999"]),
)


@pytest.mark.parametrize("made", ALL.values(), ids=ALL.keys())
@given(bits=st.integers(0, 3), body=_BODIES)
def test_garbage_is_a_decode_error(made: Codec, bits: int, body: bytes) -> None:
    """A body that is no value raises DecodeError and nothing else, whatever flag bits came with it."""
    with contextlib.suppress(DecodeError):
        made.decode(made.encode(None)[0] & ~(3 << 26) | bits << 26, body)


class Picky:
    """A class that cannot be restored any more, and says so with an exception of its own."""

    def __setstate__(self, state: object) -> None:
        raise RuntimeError("no longer")

    def __getstate__(self) -> object:
        return {"x": 1}


def test_a_class_that_refuses_its_old_state() -> None:
    """Whatever the code of the value's class raises while it is restored is a DecodeError too."""
    made = codec(name="pickle")
    with pytest.raises(DecodeError, match="RuntimeError: no longer"):
        made.decode(made.encode(None)[0] & ~(3 << 26), pickle.dumps(Picky()))


def test_deep_nesting_is_a_decode_error() -> None:
    """Brackets nested deeper than the interpreter's stack are a DecodeError, not a RecursionError."""
    made = codec(name="json")
    with pytest.raises(DecodeError):
        made.decode(made.encode(1)[0], b"[" * 200_000)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_compression(value: bytes, compress_over: int) -> None:
    """What is longer than `compress_over` is compressed if that makes it shorter; it comes back the same."""
    made = codec(bytes, compress_over=compress_over)
    flags, body = made.encode(value)
    compressed = bool(flags & 1 << 27)
    assert made.decode(flags, body) == value
    assert len(body) <= len(value)
    assert compressed == (len(value) > compress_over and len(zlib.compress(value, 1)) < len(value))


def test_compression_is_off_by_default() -> None:
    """Without `compress_over` nothing is compressed, and what others compressed can still be read."""
    value = b"a" * 1000
    assert codec(bytes).encode(value)[1] == value
    assert codec(bytes).decode(*codec(bytes, compress_over=10).encode(value)) == value
