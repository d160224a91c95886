"""Rules: what row() refuses, and that a rule file says the same after a trip through JSON."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache import Cache, ConfigError, DefinitionError, row
from leasecache.invalidation.router import Router
from leasecache.keys import KeyTemplate, check_key
from leasecache.rules import Row, Rule, RuleSet, split_table


def test_row() -> None:
    """row() binds key fields to columns; a list of columns will do."""
    assert row("media", media_id="id") == Row(table="media", fields={"media_id": "id"})
    assert row("s.media", a="x", b="y", columns=["title"]).columns == ("title",)  # type: ignore[arg-type]


def test_row_takes_a_field_of_any_name() -> None:
    """A key field called `table` can be bound: the table's own name is given by position."""
    assert row("media", table="kind").fields == {"table": "kind"}


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (("media",), {}, r"row\('media'\) binds no key field; write row\('media', key_field='column'\)"),
        (("",), {"a": "x"}, "the table must be 'name' or 'schema.name'"),
        ((".media",), {"a": "x"}, "the table must be"),
        (("public.",), {"a": "x"}, "the table must be"),
        (("db.public.media",), {"a": "x"}, "the table must be"),
        ((5,), {"a": "x"}, "the table must be"),
        (("media",), {"a": ""}, "a must be bound to the name of a column, not ''"),
        (("media",), {"a": 5}, "a must be bound to the name of a column, not 5"),
        (("media",), {"a": "x", "columns": "title"}, r"columns must be a tuple of names such as \('title',\)"),
        (("media",), {"a": "x", "columns": ()}, "columns must be a tuple"),
        (("media",), {"a": "x", "columns": ("title", 5)}, "columns must be a tuple"),
    ],
)
def test_row_faults(arguments: tuple[Any, ...], fields: dict[str, Any], message: str) -> None:
    """A dependency that cannot be meant is refused where it is written."""
    with pytest.raises(DefinitionError, match=message):
        row(*arguments, **fields)


@pytest.mark.parametrize(("name", "expected"), [("media", ("public", "media")), ("app.media", ("app", "media"))])
def test_split_table(name: str, expected: tuple[str, str]) -> None:
    """A table without a schema is one of `public`."""
    assert split_table(name) == expected


_names = st.text(st.characters(exclude_characters=".", exclude_categories=("C", "Z")), min_size=1, max_size=10)
_rules = st.builds(
    Rule,
    function=_names,
    template=_names,
    kinds=st.dictionaries(_names, st.sampled_from(["int", "str"]), max_size=3),
    schema=_names,
    table=_names,
    fields=st.dictionaries(_names, _names, max_size=3),
    columns=st.none() | st.lists(_names, min_size=1, max_size=3).map(tuple),
    stale_for=st.floats(0, 1e6),
)
_rule_sets = st.builds(RuleSet, namespace=st.none() | _names, rules=st.lists(_rules, max_size=3).map(tuple))


@given(_rule_sets)
def test_json_round_trip(rules: RuleSet) -> None:
    """What the application prints is what the daemon reads."""
    assert RuleSet.from_json(json.loads(json.dumps(rules.to_json()))) == rules


def document(**changes: Any) -> dict[str, Any]:
    """Return a rule file with one rule, changed; a change to None of a required entry is a fault."""
    entry: dict[str, Any] = {
        "function": "app.f",
        "template": "m:{a}",
        "kinds": {"a": "int"},
        "table": "public.media",
        "fields": {"a": "id"},
        "columns": None,
        "stale_for": 0,
    }
    return {"version": 1, "namespace": "shop", "rules": [{**entry, **changes}]}


def test_document_without_faults() -> None:
    """The document that the fault tests change is good itself."""
    assert RuleSet.from_json(document()).rules[0].table == "media"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "expected an object of version 1; `leasecache rules` prints one"),
        ([], "expected an object of version 1"),
        ({}, "expected an object of version 1"),
        ({**document(), "version": 2}, "expected an object of version 1"),
        ({**document(), "namespace": 5}, "namespace must be a string or null"),
        ({**document(), "rules": {}}, "`rules` must be a list"),
        ({**document(), "rules": [5]}, r"rules\[0\] must be an object"),
        ({**document(), "version": True}, "expected an object of version 1"),
        ({**document(), "rules": [*document()["rules"], {}]}, r"rules\[1\]\.table must be .* but it is missing"),
        ({**document(), "rules": document()["rules"] * 10_001}, "there are 10001, and 10000 at most are read"),
        (document(function=None), r"rules\[0\]\.function must be printable text of 1 to 1000 bytes, but it is missing"),
        (document(template=5), r"rules\[0\]\.template must be printable text .* not 5"),
        (document(table=["media"]), r"rules\[0\]\.table must be printable text .* not \['media'\]"),
        (document(table="x" * 64), r"rules\[0\]\.table must be .* 1 to 63 bytes"),
        (document(kinds=[]), r"rules\[0\]\.kinds must map at most 100 names to texts, not \[\]"),
        (document(kinds={"a": 1}), r"rules\[0\]\.kinds must be printable text .* not 1"),
        (document(fields={"a": None}), r"rules\[0\]\.fields must be printable text"),
        (document(fields={str(i): "c" for i in range(101)}), r"rules\[0\]\.fields must map at most 100"),
        (document(columns="title"), r"rules\[0\]\.columns must be a list of names"),
        (document(columns=[]), r"rules\[0\]\.columns must be a list of names"),
        (document(columns=[1]), r"rules\[0\]\.columns must be printable text"),
        (document(stale_for="1"), r"rules\[0\]\.stale_for must be 0 to 31536000 s, not '1'"),
        (document(stale_for=True), r"rules\[0\]\.stale_for must be .* not True"),
        (document(stale_for=-1), r"rules\[0\]\.stale_for must be .* not -1"),
        (document(stale_for=float("nan")), r"rules\[0\]\.stale_for must be .* not nan"),
    ],
)
def test_json_faults(document: Any, message: str) -> None:
    """A rule file with a fault is a ConfigError that names the entry."""
    with pytest.raises(ConfigError, match=message):
        RuleSet.from_json(document)


HOSTILE: list[Any] = [
    *(None, True, -1, 1e308, 10**400, float("inf"), "", [], [[]], {}, {"x": None}, {"a": {"a": "a"}}),
    *("{", "{a", "{a!r}", "{a:>9}", "{0}", "{a.__class__}", "{a[0]}", "{}", "{a}{a}"),
    *("a\r\nflush_all\r\n{a}", "a b:{a}", "\ud800:{a}", "\0:{a}", "\u2028", "\x1b[31m:{a}", "x" * 70_000),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the way to every value in a document."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """Return a document with the value at `path` replaced."""
    if not path:
        return junk
    inner = replaced(value[path[0]], path[1:], junk)
    if isinstance(value, dict):
        return {**value, path[0]: inner}
    return [inner if i == path[0] else one for i, one in enumerate(value)]


def test_hostile_documents() -> None:
    """Whatever a rule file holds is refused in one short line, or makes rules whose keys are keys."""
    good, refusals = document(columns=["title"]), []
    for path in places(good):
        for junk in HOSTILE:
            try:
                rules = RuleSet.from_json(replaced(good, path, junk))
                Router(RuleSet(namespace="shop", rules=rules.rules))
            except (ConfigError, DefinitionError) as error:
                refusals.append(str(error))
                continue
            for rule in rules.rules:
                template = KeyTemplate.parse(rule.template, rule.kinds)
                check_key(template.renderer("shop").from_text([b"7"] * len(template.fields)))
    assert [text for text in refusals if "\n" in text or len(text) > 300] == []


def test_rules_of_a_cache() -> None:
    """A cache lists one rule per function and table, under its namespace, and none for functions without depends_on."""
    cache = Cache.from_url("memory://?namespace=shop")

    @cache.cached(
        "m:{a}:{b}", ttl=60, stale_for=5, depends_on=[row("media", a="id", b="kind"), row("s.x", a="p", b="q")]
    )
    def both(a: int, b: str | None) -> str:
        return ""

    @cache.cached("other:{a}", ttl=60)
    def neither(a: int) -> str:
        return ""

    name = f"{__name__}.test_rules_of_a_cache.<locals>.both"
    common: Any = {"function": name, "template": "m:{a}:{b}", "kinds": {"a": "int", "b": "str"}, "stale_for": 5}
    assert cache.rules == RuleSet(
        namespace="shop",
        rules=(
            Rule(**common, schema="public", table="media", fields={"a": "id", "b": "kind"}),
            Rule(**common, schema="s", table="x", fields={"a": "p", "b": "q"}),
        ),
    )
    assert RuleSet.from_json(cache.rules.to_json()) == cache.rules


@pytest.mark.parametrize(
    ("depends_on", "message"),
    [
        (row("media", a="id"), r"row\('media'\) does not bind key field 'b'; add b="),
        (row("media", a="id", b="x", c="y"), r"row\('media'\) binds 'c', which is not a key field"),
        ((), r"depends_on takes one row\(...\) or several"),
        ("media", r"depends_on takes one row\(...\) or several"),
        ([("media", "id")], r"depends_on takes one row\(...\) or several"),
    ],
)
def test_depends_on_faults(depends_on: Any, message: str) -> None:
    """A dependency that does not bind every key field, or another, is refused when decorating."""
    cache = Cache()
    with pytest.raises(DefinitionError, match=message):

        @cache.cached("m:{a}:{b}", ttl=60, depends_on=depends_on)
        def load(a: int, b: int) -> str:
            return ""
