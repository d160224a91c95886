"""Invalidation rules: which key a changed row touches. Plain values that the application and the daemon share."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leasecache.errors import ConfigError, DefinitionError

RULES_VERSION = 1
MOST_RULES = 10_000  # of a document; the other limits are those of one rule
_MOST_FIELDS = 100
_MOST_TEXT = 1_000  # characters of a template or a function's name
_MOST_NAME = 63  # bytes of an identifier; Postgres has no longer ones
_MOST_STALE = 365 * 86_400.0  # s


@dataclass(frozen=True, kw_only=True)
class Row:
    """A dependency on the rows of one table: key field → column, as given to `depends_on`."""

    table: str
    fields: Mapping[str, str]
    columns: tuple[str, ...] | None = None


def row(table: str, /, *, columns: tuple[str, ...] | None = None, **fields: str) -> Row:
    """Declare that a key depends on a row of `table` (`name` or `schema.name`; no schema means `public`).

    `fields` binds each key field to the column that holds its value. `columns` names the columns whose updates
    matter; it filters only under REPLICA IDENTITY FULL, otherwise every update of the row invalidates.
    Raises DefinitionError when a name is missing or no name, or `columns` is empty or a bare string.
    """
    if not _is_name(table) or len(parts := table.split(".")) > 2 or not all(parts):
        raise DefinitionError(f"row({table!r}): the table must be 'name' or 'schema.name'")
    if not fields:
        raise DefinitionError(f"row({table!r}) binds no key field; write row({table!r}, key_field='column')")
    for name, column in fields.items():
        if not _is_name(column):
            raise DefinitionError(f"row({table!r}): {name} must be bound to the name of a column, not {column!r}")
    if columns is not None and not (isinstance(columns, (tuple, list)) and columns and all(map(_is_name, columns))):
        raise DefinitionError(f"row({table!r}): columns must be a tuple of names such as ('title',), not {columns!r}")
    return Row(table=table, fields=fields, columns=None if columns is None else tuple(columns))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One table → one key template. `kinds` are the rendering kinds of the key fields (`leasecache.keys.KINDS`)."""

    function: str  # qualified name of the cached function, for messages
    template: str  # "media:{media_id}", without the namespace
    kinds: Mapping[str, str]  # key field → kind
    schema: str
    table: str
    fields: Mapping[str, str]  # key field → column
    columns: tuple[str, ...] | None = None  # update filter, None = every update
    stale_for: float = 0.0  # s an invalidated value stays servable as stale


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != ""


def split_table(name: str) -> tuple[str, str]:
    """Return (schema, table) of `name` or `schema.name`."""
    schema, dot, table = name.rpartition(".")
    return (schema, table) if dot else ("public", name)


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """The rules of one cache, with the namespace its keys are rendered under (None = not configured yet)."""

    namespace: str | None
    rules: tuple[Rule, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON object that `leasecache rules` prints."""
        return {"version": RULES_VERSION, "namespace": self.namespace, "rules": [_rule_to_json(r) for r in self.rules]}

    @classmethod
    def from_json(cls, document: Any) -> "RuleSet":
        """Read what `to_json` wrote. Raises ConfigError naming the faulty entry."""
        version = document.get("version") if isinstance(document, dict) else None
        if version != RULES_VERSION or isinstance(version, bool):
            raise ConfigError(f"rules: expected an object of version {RULES_VERSION}; `leasecache rules` prints one")
        namespace = document.get("namespace")
        if namespace is not None and not isinstance(namespace, str):
            raise ConfigError("rules: namespace must be a string or null")
        entries = document.get("rules")
        if not isinstance(entries, list):
            raise ConfigError("rules: `rules` must be a list")
        if len(entries) > MOST_RULES:
            raise ConfigError(f"rules: there are {len(entries)}, and {MOST_RULES} at most are read")
        return cls(namespace=namespace, rules=tuple(_rule_from_json(i, entry) for i, entry in enumerate(entries)))


def _rule_to_json(rule: Rule) -> dict[str, Any]:
    return {
        "function": rule.function,
        "template": rule.template,
        "kinds": dict(rule.kinds),
        "table": f"{rule.schema}.{rule.table}",
        "fields": dict(rule.fields),
        "columns": None if rule.columns is None else list(rule.columns),
        "stale_for": rule.stale_for,
    }


def _rule_from_json(index: int, entry: Any) -> Rule:
    where = f"rules[{index}]"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be an object")
    schema, table = split_table(_text(entry.get("table"), f"{where}.table", 2 * _MOST_NAME + 1))
    columns = entry.get("columns")
    if columns is not None and not (isinstance(columns, list) and 0 < len(columns) <= _MOST_FIELDS):
        raise ConfigError(f"{where}.columns must be a list of names, 1 to {_MOST_FIELDS}, or null")
    return Rule(
        function=_text(entry.get("function"), f"{where}.function", _MOST_TEXT),
        template=_text(entry.get("template"), f"{where}.template", _MOST_TEXT),
        kinds=_names(entry.get("kinds"), f"{where}.kinds"),
        schema=_text(schema, f"{where}.table", _MOST_NAME),
        table=_text(table, f"{where}.table", _MOST_NAME),
        fields=_names(entry.get("fields"), f"{where}.fields"),
        columns=None if columns is None else tuple(_text(one, f"{where}.columns", _MOST_NAME) for one in columns),
        stale_for=_seconds(entry.get("stale_for"), f"{where}.stale_for"),
    )


def _instead(value: Any) -> str:
    return "but it is missing" if value is None else f"not {reprlib.repr(value)}"


def _text(value: Any, where: str, most: int) -> str:
    """Return a text that can be shown in one line, compared with a name of Postgres, and sent anywhere."""
    if isinstance(value, str) and value.isprintable():
        size = len(value.encode(errors="surrogatepass"))
        if 0 < size <= most:
            return value
    raise ConfigError(f"{where} must be printable text of 1 to {most} bytes, {_instead(value)}")


def _names(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > _MOST_FIELDS:
        raise ConfigError(f"{where} must map at most {_MOST_FIELDS} names to texts, {_instead(value)}")
    return {_text(name, where, _MOST_TEXT): _text(one, where, _MOST_NAME) for name, one in value.items()}


def _seconds(value: Any, where: str) -> float:
    # The bounds come first: neither an integer of any size nor NaN gets as far as float().
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _MOST_STALE:
        return float(value)
    raise ConfigError(f"{where} must be 0 to {_MOST_STALE:.0f} s, {_instead(value)}")
