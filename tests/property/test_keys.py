"""What holds of the keys of any template and any arguments."""

import re
import urllib.parse
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from leasecache import _pure_keys
from leasecache.keys import KINDS, KeyTemplate
from tests.twins import TWINS, each_twin, outcome
from tests.values import ANYTHING, VALUES, arguments, column_texts, nullable, postgres_text, templates


def renderer(twin: Any, template: KeyTemplate) -> Any:
    """Return the twin's renderer of a template."""
    return twin.Renderer(
        "app.load",
        tuple(literal.encode() for literal in template.literals),
        template.fields,
        tuple(KINDS.index(field.kind) for field in template.types),
        tuple(field.nullable for field in template.types),
        tuple(field.enum for field in template.types),
    )


def agree(call: str, template: KeyTemplate, values: Any) -> None:
    """Assert that all twins return the same key or raise the same error."""
    outcomes = [outcome(getattr(renderer(twin, template), call), values) for twin in TWINS]
    assert outcomes.count(outcomes[0]) == len(outcomes)


def parse_back(template: KeyTemplate, key: bytes) -> list[bytes]:
    """Return the one way in which `key` can be read as a rendering of `template`."""
    field = rb"([A-Za-z0-9._~%!-]*)"
    pattern = field.join(re.escape(literal.encode()) for literal in template.literals)
    found = re.fullmatch(pattern, key)
    assert found is not None, f"{key!r} is not of {template.text!r}"
    return list(found.groups())


@given(st.data())
def test_twins_agree_on_any_arguments(data: st.DataObject) -> None:
    """Compiled and pure rendering give the same key, or the same error with the same message, whatever is passed."""
    template = data.draw(templates())
    fitting = st.tuples(*(ANYTHING | nullable(field.kind) for field in template.types))
    agree("from_python", template, data.draw(fitting | st.lists(ANYTHING, max_size=3).map(tuple)))


@given(st.data())
def test_twins_agree_on_any_batch(data: st.DataObject) -> None:
    """Compiled and pure rendering of a batch give the keys that are rendered one by one, or the same error."""
    template = data.draw(templates())
    one = arguments(template) | st.lists(ANYTHING, max_size=3).map(tuple) | ANYTHING
    batch = data.draw(st.lists(arguments(template), max_size=3)) + data.draw(st.lists(one, max_size=1))
    agree("from_many", template, batch)
    singles = [outcome(renderer(TWINS[0], template).from_python, v if isinstance(v, tuple) else (v,)) for v in batch]
    if all(single[0] == "returned" for single in singles):
        assert renderer(TWINS[-1], template).from_many(batch) == [single[1] for single in singles]


@given(st.data())
def test_twins_agree_on_any_text(data: st.DataObject) -> None:
    """Compiled and pure rendering of column text agree on any bytes, near misses of the kind's own text among them."""
    template = data.draw(templates())
    columns = []
    for field in template.types:
        text = data.draw(nullable(field.kind).map(lambda value, kind=field.kind: postgres_text(kind, value)))
        if text and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(text)))
            text = text[:at] + data.draw(st.binary(max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
        columns.append(data.draw(st.binary(max_size=50)) if data.draw(st.integers(0, 9)) == 0 else text)
    agree("from_text", template, columns)


@pytest.mark.parametrize("name", ["percent_encode", "shorten"])
@given(text=st.binary(max_size=400) | st.binary(min_size=218, max_size=222))
@example(text=b"x" * 187 + b"~" + b"0" * 32)
@example(text=b"x" * 187 + b"~" + b"0" * 33)
@example(text=b"\n" * 187 + b"~" + b"0" * 32)
def test_twins_agree_on_bytes(name: str, text: bytes) -> None:
    """Encoding and shortening agree on any bytes."""
    results = {getattr(twin, name)(text) for twin in TWINS}
    assert len(results) == 1


@each_twin
@given(data=st.data())
def test_text_and_python_agree(twin: Any, data: st.DataObject) -> None:
    """Arguments and the column text of the same values give one key."""
    template = data.draw(templates())
    values = data.draw(arguments(template))
    made = renderer(twin, template)
    assert made.from_text(column_texts(template, values)) == made.from_python(values)


@each_twin
@given(data=st.data())
def test_arguments_stay_in_their_fields(twin: Any, data: st.DataObject) -> None:
    """A key, before it is shortened, reads back as exactly the arguments that made it."""
    template = data.draw(templates())
    values = data.draw(arguments(template))
    key = renderer(twin, template).from_python(values)
    assert len(key) <= 220
    assert all(0x21 <= byte <= 0x7E for byte in key)
    assert not set(key) & set(b"{}")
    assume(not (len(key) == 220 and key[187:188] == b"~"))
    for field, value, rendered in zip(template.types, values, parse_back(template, key), strict=True):
        if value is None:
            assert rendered == b"!"
        else:
            decoded = urllib.parse.unquote_to_bytes(rendered)
            text = value if field.kind == "bytes" else postgres_text(field.kind, value)
            assert decoded == text


@each_twin
@given(data=st.data())
def test_different_arguments_have_different_keys(twin: Any, data: st.DataObject) -> None:
    """Two argument tuples never share a key, one built from pieces of the other's key included."""
    template = data.draw(templates())
    made = renderer(twin, template)
    one = data.draw(arguments(template))
    pieces = st.sampled_from([made.from_python(one).decode(), *map(str, one), "!", ":"])
    crafted = st.lists(pieces, max_size=3).map("".join)
    other = tuple(
        data.draw(nullable(field.kind) | crafted if field.kind == "str" else nullable(field.kind))
        for field in template.types
    )
    assume(one != other)
    assert made.from_python(one) != made.from_python(other)


@each_twin
@given(data=st.data())
def test_shortened_keys_cannot_be_spelt(twin: Any, data: st.DataObject) -> None:
    """An argument that continues a literal to the shortened form of another key has a key of its own."""
    literal = data.draw(st.text("ab:", min_size=1, max_size=20))
    made = renderer(twin, KeyTemplate.parse(literal + "{x}", {"x": "str"}))
    long = data.draw(st.text("ab~0", min_size=221, max_size=240))
    victim = made.from_python((long,))
    assert made.from_python((victim.decode().removeprefix(literal),)) != victim


@given(data=st.data())
def test_overlap_never_errs_towards_no(data: st.DataObject) -> None:
    """A template that renders a key of another one, with its fields elsewhere, is known to overlap."""
    one = data.draw(templates())
    key = renderer(_pure_keys, one).from_python(data.draw(arguments(one))).decode()
    assume(len(key) <= 120)
    start = data.draw(st.integers(0, len(key)))
    run = re.match(r"[A-Za-z0-9._~%!-]*", key[start:])
    end = start + data.draw(st.integers(0, run.end() if run else 0))
    other = KeyTemplate.parse(f"{key[:start]}{{g}}{key[end:]}", {"g": "str"})
    assert one.overlaps(other)
    assert other.overlaps(one)


@given(template=templates())
def test_a_template_overlaps_itself(template: KeyTemplate) -> None:
    """Two functions with one template are always refused."""
    assert template.overlaps(template)


def test_every_kind_is_generated() -> None:
    """The generators cover each kind there is."""
    assert set(VALUES) == set(KINDS)


@given(st.lists(st.binary(min_size=1, max_size=6), max_size=12), st.integers(1, 40))
def test_deletions_are_cut_at_the_limit(keys: list[bytes], most: int) -> None:
    """Requests that delete hold every key in its order, and none is longer than the limit, unless for one key."""
    for twin in TWINS:
        requests = twin.delete_requests(keys, most)
        assert b"".join(requests) == b"".join(b"md %b q\r\n" % key for key in keys)
        assert all(request for request in requests)
        assert all(len(request) <= max(most, 13) for request in requests)
    assert TWINS[0].delete_requests(keys, most) == TWINS[-1].delete_requests(keys, most)
