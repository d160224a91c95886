"""Key templates: what they accept, what they refuse with which fix, and the bytes they render to."""

import datetime
import enum
import hashlib
import json
import typing
import uuid
from pathlib import Path
from typing import Any, NewType, Optional

import pytest

from leasecache.errors import ConfigError, DefinitionError
from leasecache.keys import KINDS, FieldType, KeyTemplate, field_type, key_prefix
from tests.twins import each_twin

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "keys.json").read_text())
FROM_JSON: dict[str, Any] = {
    "int": int,
    "str": str,
    "bool": bool,
    "uuid": uuid.UUID,
    "date": datetime.date.fromisoformat,
    "bytes": bytes.fromhex,
}

MediaId = NewType("MediaId", int)
OwnMediaId = NewType("OwnMediaId", MediaId)


class Colour(enum.Enum):
    """Values that must not be able to leave their field."""

    RED = "red"
    ODD = "a:b"


class Rank(enum.IntEnum):
    """An Enum that is an int as well."""

    LOW = 1
    HIGH = 20


class Tag(str, enum.Enum):
    """An Enum that is a str as well; its str() is not its value."""

    NEW = "new"


def renderer(twin: Any, template: str, *types: FieldType, function: str = "app.load") -> Any:
    """Return the twin's renderer of a template whose fields have these types, in order."""
    parsed = KeyTemplate.typed(template, dict(zip(KeyTemplate.fields_of(template), types, strict=True)))
    return twin.Renderer(
        function,
        tuple(literal.encode() for literal in parsed.literals),
        parsed.fields,
        tuple(KINDS.index(field.kind) for field in types),
        tuple(field.nullable for field in types),
        tuple(field.enum for field in types),
    )


@each_twin
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["key"][:40])
def test_golden(twin: Any, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments and column text render to the bytes that the golden file fixes for ever."""
    monkeypatch.setattr("leasecache.keys.Renderer", twin.Renderer)
    names = KeyTemplate.fields_of(case["template"])
    types = {name: FieldType(kind=kind, nullable=True) for name, kind in zip(names, case["kinds"], strict=True)}
    made = KeyTemplate.typed(case["template"], types).renderer(case["namespace"])
    arguments = tuple(
        None if value is None else FROM_JSON[kind](value)
        for kind, value in zip(case["kinds"], case["python"], strict=True)
    )
    assert made.from_python(arguments) == case["key"].encode()
    assert (
        made.from_text([None if text is None else text.encode() for text in case["postgres"]]) == case["key"].encode()
    )


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, FieldType(kind="int")),
        (str, FieldType(kind="str")),
        (bool, FieldType(kind="bool")),
        (uuid.UUID, FieldType(kind="uuid")),
        (datetime.date, FieldType(kind="date")),
        (bytes, FieldType(kind="bytes")),
        (int | None, FieldType(kind="int", nullable=True)),
        (Optional[str], FieldType(kind="str", nullable=True)),  # noqa: UP045
        (MediaId, FieldType(kind="int")),
        (OwnMediaId, FieldType(kind="int")),
        (Optional[OwnMediaId], FieldType(kind="int", nullable=True)),  # noqa: UP045
        (NewType("MaybeId", Optional[int]), FieldType(kind="int", nullable=True)),  # type: ignore[valid-newtype] # noqa: UP045
        (Colour, FieldType(kind="str", enum=Colour)),
        (Rank, FieldType(kind="int", enum=Rank)),
        (Tag | None, FieldType(kind="str", nullable=True, enum=Tag)),
        (NewType("Shade", Colour), FieldType(kind="str", enum=Colour)),
    ],
    ids=str,
)
def test_field_types(annotation: Any, expected: FieldType) -> None:
    """Every annotation that the contract names has its kind."""
    assert field_type(annotation, "f") == expected


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (float, r"float: two floats that print alike differ; use int or str"),
        (float | None, r"two floats|use int"),
        (datetime.datetime, r"datetime: its text depends on the time zone; use date, int or str"),
        (Any, r"use int, str, bool, UUID, date, bytes"),
        (list[int], r"list\[int\]: use int, str"),
        (int | str, r"int \| str: use int, str"),
        (int | str | None, r"use int, str"),
        (object, r"object: use int"),
        (typing.Literal["a"], r"Literal.*use int"),
        ([], r"use int"),
        (enum.Enum("Empty", []), r"Empty needs values that are all int or all str"),
        (enum.Enum("Mixed", {"A": 1, "B": "x"}), r"Mixed needs values that are all int or all str"),
        (enum.Enum("Truth", {"YES": True}), r"Truth needs values that are all int or all str"),
    ],
    ids=str,
)
def test_field_types_refused(annotation: Any, message: str) -> None:
    """An annotation without one canonical text is refused, and the message says what to use."""
    with pytest.raises(DefinitionError, match=r"^load: parameter 'x'.*(" + message + ")"):
        field_type(annotation, "load: parameter 'x'")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "empty template has no key; write for example"),
        ("{a}{b}", r"put ':' between \{a\} and \{b\}"),
        ("{a}x{b}", r"put ':' between \{a\} and \{b\}; 'x' can also come from a value"),
        ("{a}-%!~{b}", "put ':' between"),
        ("{a}:{a}", "names field 'a' twice"),
        ("m:{a!r}", "a field is a plain name"),
        ("m:{a:d}", "a field is a plain name"),
        ("m:{a.b}", "a field is a plain name"),
        ("m:{a[0]}", "a field is a plain name"),
        ("m:{}", "a field is a plain name"),
        ("m:{0}", "a field is a plain name"),
        ("m:{a", "is malformed"),
        ("m:a}", "is malformed"),
        ("m:{{a}}", r"'\{' cannot be in a key; use visible ASCII without braces"),
        ("m é:{a}", "' ' cannot be in a key"),
        ("mé:{a}", "'é' cannot be in a key"),
        ("m\r\n:{a}", r"'\\r' cannot be in a key"),
        ("m\x7f:{a}", r"'\\x7f' cannot be in a key"),
        ("m:{c}", "field 'c' has no type"),
        ("m" * 121, "more than 120 literal characters"),
    ],
)
def test_templates_refused(template: str, message: str) -> None:
    """A template that could not be rendered, or not unambiguously, is refused with the fix."""
    with pytest.raises(DefinitionError, match=message):
        KeyTemplate.parse(template, {"a": "int", "b": "int"})


def test_unknown_kind_refused() -> None:
    """A rule file from a newer version that names a kind unknown here is refused, and the known kinds are named."""
    with pytest.raises(DefinitionError, match="unknown kind 'inet'; kinds are int, str, bool, uuid, date, bytes"):
        KeyTemplate.parse("host:{ip}", {"ip": "inet"})


def test_parse_and_typed_agree() -> None:
    """What a rule carries of a template gives back the same renderings as the typed template."""
    typed = KeyTemplate.typed("{a}:{b}", {"a": FieldType(kind="int", nullable=True), "b": FieldType(kind="str")})
    parsed = KeyTemplate.parse(typed.text, typed.kinds)
    assert typed.renderer("n").from_python((None, "x")) == parsed.renderer("n").from_text([None, b"x"]) == b"n:!:x"


@pytest.mark.parametrize("namespace", ["", "a:b", "a b", "é", "a\n", "%", "{x}"])
def test_namespaces_refused(namespace: str) -> None:
    """A namespace that could run into a key is refused."""
    with pytest.raises(ConfigError, match="must be letters, digits"):
        key_prefix(namespace)


@each_twin
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("int", True, "int, not bool"),
        ("int", "1", "int, not str"),
        ("int", 1.0, "int, not float"),
        ("int", None, "int, not NoneType"),
        ("str", b"a", "str, not bytes"),
        ("str", 1, "str, not int"),
        ("bool", 1, "bool, not int"),
        ("uuid", "0e37df36-f698-11e6-8dd4-cb9ced3df976", "UUID, not str"),
        ("date", datetime.datetime(2024, 1, 1), "date, not datetime"),
        ("date", "2024-01-01", "date, not str"),
        ("bytes", "a", "bytes, not str"),
        ("bytes", bytearray(b"a"), "bytes, not bytearray"),
    ],
)
def test_wrong_argument(twin: Any, kind: str, value: object, expected: str) -> None:
    """An argument of another type is a TypeError that names function, field and both types."""
    with pytest.raises(TypeError, match=f"^app.load: key field 'x' must be {expected}$"):
        renderer(twin, "m:{x}", FieldType(kind=kind)).from_python((value,))


@each_twin
def test_lone_surrogate(twin: Any) -> None:
    """A str that has no UTF-8 is a ValueError that names function and field."""
    with pytest.raises(ValueError, match=r"^app.load: key field 'x' holds a lone surrogate$"):
        renderer(twin, "m:{x}", FieldType(kind="str")).from_python(("\ud800",))


@each_twin
@pytest.mark.parametrize(("values", "given"), [((), 0), ((1, 2), 2)])
def test_wrong_count(twin: Any, values: tuple[int, ...], given: int) -> None:
    """Too few or too many values are refused, never cut or padded."""
    made = renderer(twin, "m:{x}", FieldType(kind="int"))
    with pytest.raises(TypeError, match=f"^app.load: the key takes 1 fields, not {given}$"):
        made.from_python(values)
    with pytest.raises(ValueError, match=f"^app.load: the key takes 1 fields, not {given}$"):
        made.from_text([b"1"] * given)


@each_twin
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("int", b""),
        ("int", b"-"),
        ("int", b"-0"),
        ("int", b"01"),
        ("int", b"+1"),
        ("int", b"1.0"),
        ("int", b"1\n"),
        ("int", " １".encode()),
        ("bool", b"true"),
        ("bool", b""),
        ("uuid", b"0E37DF36-F698-11E6-8DD4-CB9CED3DF976"),
        ("uuid", b"0e37df36f69811e68dd4cb9ced3df976"),
        ("uuid", b"0e37df36-f698-11e6-8dd4-cb9ced3df976 "),
        ("bytes", b"abc"),
        ("bytes", b"\\x0"),
        ("bytes", b"\\xAB"),
        ("bytes", b"\\000"),
    ],
)
def test_wrong_text(twin: Any, kind: str, text: bytes) -> None:
    """Column text that Postgres would not print for the kind is a ValueError: another key would be invalidated."""
    with pytest.raises(ValueError, match=r"^app.load: b.* is not the Postgres text of field x$"):
        renderer(twin, "m:{x}", FieldType(kind=kind)).from_text([text])


@each_twin
def test_enum(twin: Any) -> None:
    """An Enum renders as its value, encoded; a bare value or a member of another Enum is refused."""
    made = renderer(
        twin, "m:{c}:{r}", FieldType(kind="str", enum=Colour, nullable=True), FieldType(kind="int", enum=Rank)
    )
    assert made.from_python((Colour.ODD, Rank.HIGH)) == made.from_text([b"a:b", b"20"]) == b"m:a%3Ab:20"
    assert made.from_python((None, Rank.LOW)) == b"m:!:1"
    with pytest.raises(TypeError, match="key field 'c' must be Colour, not str"):
        made.from_python(("red", Rank.LOW))
    with pytest.raises(TypeError, match="key field 'r' must be Rank, not int"):
        made.from_python((Colour.RED, 1))
    with pytest.raises(TypeError, match="key field 'c' must be Colour, not Tag"):
        made.from_python((Tag.NEW, Rank.LOW))


@each_twin
def test_subclasses_render_as_their_base(twin: Any) -> None:
    """Members of int and str Enums render by value where the field is a plain int or str, whatever str() says."""
    made = renderer(twin, "m:{r}:{t}", FieldType(kind="int"), FieldType(kind="str"))
    assert made.from_python((Rank.HIGH, Tag.NEW)) == b"m:20:new"


@each_twin
def test_a_subclass_cannot_leave_its_field(twin: Any) -> None:
    """A date or UUID class that prints itself differently is still encoded."""

    class Day(datetime.date):
        def isoformat(self) -> str:
            return "1:2"

    class Id(uuid.UUID):
        def __str__(self) -> str:
            return "1:2"

    made = renderer(twin, "{d}:{u}", FieldType(kind="date"), FieldType(kind="uuid"))
    assert made.from_python((Day(2024, 1, 1), Id(int=1))) == b"1%3A2:1%3A2"


@each_twin
@pytest.mark.parametrize("size", [219, 220, 221, 10_000])
def test_length_rule(twin: Any, size: int) -> None:
    """A key of 220 bytes stays; a longer one becomes 187 bytes, ~ and its BLAKE2b-128."""
    whole = b"m:" + b"x" * (size - 2)
    key = renderer(twin, "m:{x}", FieldType(kind="str")).from_python(("x" * (size - 2),))
    if size <= 220:
        assert key == whole
    else:
        assert key == whole[:187] + b"~" + hashlib.blake2b(whole, digest_size=16).hexdigest().encode()
        assert len(key) == 220


@each_twin
def test_nobody_can_spell_a_shortened_key(twin: Any) -> None:
    """An argument chosen to spell the shortened form of another key gets a key of its own."""
    made = renderer(twin, "m:{x}", FieldType(kind="str"))
    victim = made.from_python(("x" * 300,))
    attacker = made.from_python((victim.decode().removeprefix("m:"),))
    assert len(victim) == len(attacker) == 220
    assert attacker != victim


@each_twin
@pytest.mark.parametrize("change", [b"g", b"A"])
def test_only_real_shortened_forms_are_shortened_again(twin: Any, change: bytes) -> None:
    """A key of 220 bytes with ~ in the place, but no lower-case hex behind it, stays as it is."""
    key = b"x" * 187 + b"~" + b"0" * 31 + change
    assert twin.shorten(key) == key
    assert twin.shorten(key[:-1] + b"f") != key[:-1] + b"f"


@each_twin
@pytest.mark.parametrize(
    "broken",
    [
        {"literals": (b"a",)},
        {"literals": (b"a", "b")},
        {"names": ()},
        {"kinds": (6,)},
        {"kinds": (-1,)},
        {"nullable": ()},
        {"enums": (None, None)},
    ],
)
def test_renderer_refuses_misfits(twin: Any, broken: dict[str, Any]) -> None:
    """Parts that do not fit together are refused when the renderer is made, not found out by reading past them."""
    parts = {"literals": (b"a", b"b"), "names": ("x",), "kinds": (0,), "nullable": (False,), "enums": (None,), **broken}
    with pytest.raises((ValueError, TypeError)):
        twin.Renderer("f", *parts.values())


OVERLAPS = [
    ("a:{x}", "a:{y}", "int", "int", True),
    ("a:{x}", "a:{y}", "int", "str", True),
    ("a:{x}", "b:{y}", "int", "int", False),
    ("a:{x}", "a:b:{y}", "str", "str", False),  # ':' is never emitted
    ("a:{x}", "ab{y}", "str", "str", False),
    ("{x}:a", "b:{y}", "str", "str", True),  # b:a
    ("{x}:a", "b:{y}", "int", "str", False),  # "b" is no int
    ("{x}:a", "b:{y}", "str", "bool", False),  # "a" is no bool
    ("a:{x}", "a:latest", "str", "str", True),
    ("a:{x}", "a:latest", "int", "str", False),
    ("a:{x}", "a:17", "int", "str", True),
    ("a:{x}", "a:!", "int", "str", True),  # NULL
    ("a:{x}", "a:", "str", "str", True),  # the empty string
    ("a{x}", "a:{y}", "str", "str", False),
    ("same", "same", "int", "int", True),
    ("same", "sam", "int", "int", False),
]


@pytest.mark.parametrize(("one", "other", "kind", "other_kind", "overlap"), OVERLAPS)
def test_overlaps(one: str, other: str, kind: str, other_kind: str, overlap: bool) -> None:
    """Templates that could render one key are told apart from those that cannot, in both directions."""
    first = KeyTemplate.parse(one, dict.fromkeys(KeyTemplate.fields_of(one), kind))
    second = KeyTemplate.parse(other, dict.fromkeys(KeyTemplate.fields_of(other), other_kind))
    assert first.overlaps(second) is overlap
    assert second.overlaps(first) is overlap
