"""Invalidation rules: which key a changed row touches. Plain values that the application and the daemon share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leasecache.errors import ConfigError, DefinitionError

RULES_VERSION = 1


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
        if not isinstance(document, dict) or document.get("version") != RULES_VERSION:
            raise ConfigError(f"rules: expected an object of version {RULES_VERSION}; `leasecache rules` prints one")
        namespace = document.get("namespace")
        if namespace is not None and not isinstance(namespace, str):
            raise ConfigError("rules: namespace must be a string or null")
        entries = document.get("rules")
        if not isinstance(entries, list):
            raise ConfigError("rules: `rules` must be a list")
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
    schema, table = split_table(_expect(entry, "table", str, where))
    columns = entry.get("columns")
    if columns is not None and not (columns and _all_strings(columns)):
        raise ConfigError(f"{where}.columns must be a list of names, at least one, or null")
    stale_for = float(_expect(entry, "stale_for", (int, float), where))
    if not 0 <= stale_for < math.inf:
        raise ConfigError(f"{where}.stale_for must be 0 or more s, not {stale_for!r}")
    return Rule(
        function=_expect(entry, "function", str, where),
        template=_expect(entry, "template", str, where),
        kinds=_expect_names(entry, "kinds", where),
        schema=schema,
        table=table,
        fields=_expect_names(entry, "fields", where),
        columns=None if columns is None else tuple(columns),
        stale_for=stale_for,
    )


def _expect(entry: dict[str, Any], key: str, types: Any, where: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, types) or isinstance(value, bool):
        raise ConfigError(f"{where}.{key} is missing or of the wrong type: {value!r}")
    return value


def _expect_names(entry: dict[str, Any], key: str, where: str) -> dict[str, str]:
    value = _expect(entry, key, dict, where)
    if not _all_strings(value.values()):
        raise ConfigError(f"{where}.{key} must map names to strings")
    return dict(value)


def _all_strings(values: Any) -> bool:
    return isinstance(values, (list, type({}.values()))) and all(isinstance(v, str) for v in values)
