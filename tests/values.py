"""Generated key values: any argument of a key field, with the text that Postgres prints for it."""

import datetime
import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from leasecache.keys import FieldType, KeyTemplate

Text = bytes | None

# str of every kind of character but NUL, which Postgres has not, and lone surrogates, which UTF-8 has not
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40) | st.sampled_from(
    [
        "",
        "!",
        "%",
        "~",
        "a:b",
        "it's",
        '"',
        "\\",
        "\\x00",
        "{x}",
        "\r\n",
        "\x01\x7f",
        "ü",
        "u\u0308",
        "\U0001f511",
        "é" * 300,
    ]
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers() | st.sampled_from([0, -1, 2**63 - 1, -(2**63), 2**63, 2**64, 10**100]),
    "str": TEXTS,
    "bool": st.booleans(),
    "uuid": st.uuids(allow_nil=True),
    "date": st.dates(),
    "bytes": st.binary(max_size=40) | st.binary(min_size=200, max_size=300),
}
_TO_TEXT: dict[str, Callable[[Any], bytes]] = {
    "int": lambda value: str(value).encode(),
    "str": lambda value: value.encode(),
    "bool": lambda value: b"t" if value else b"f",
    "uuid": lambda value: str(value).encode(),
    "date": lambda value: value.isoformat().encode(),
    "bytes": lambda value: b"\\x" + value.hex().encode(),
}


def postgres_text(kind: str, value: Any) -> Text:
    """Return what Postgres prints for `value`."""
    return None if value is None else _TO_TEXT[kind](value)


def nullable(kind: str) -> st.SearchStrategy[Any]:
    """Return values of a kind, None among them."""
    return st.none() | VALUES[kind]


_LITERALS = st.text("abz09:/,;=+@#&?*~%!-._", max_size=6)
_SEPARATORS = st.sampled_from([":", "/", "::", "a:b", "%:", ":!", ",", "="])  # each holds what encoding never emits


@st.composite
def templates(draw: st.DrawFn) -> KeyTemplate:
    """A template of up to four fields of any kind, all nullable."""
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4))
    text = draw(_LITERALS)
    for i in range(len(kinds)):
        text += (draw(_SEPARATORS) if i else "") + f"{{f{i}}}"
    text += draw(_LITERALS)
    types = {f"f{i}": FieldType(kind=kind, nullable=True) for i, kind in enumerate(kinds)}
    return KeyTemplate.typed(text or "x", types)


def arguments(template: KeyTemplate) -> st.SearchStrategy[tuple[Any, ...]]:
    """Arguments that fit a template."""
    return st.tuples(*(nullable(field.kind) for field in template.types))


def column_texts(template: KeyTemplate, values: tuple[Any, ...]) -> list[Text]:
    """Return the columns that hold the same values."""
    return [postgres_text(field.kind, value) for field, value in zip(template.types, values, strict=True)]


ANYTHING: st.SearchStrategy[Any] = st.one_of(
    *VALUES.values(),
    st.none(),
    st.floats(),
    st.text(),  # lone surrogates too
    st.datetimes(),
    st.just(object),
    st.builds(bytearray),
    st.lists(st.integers(), max_size=2),
    st.just(uuid.UUID),
    st.timedeltas(),
    st.just(datetime.timezone.utc),
)
