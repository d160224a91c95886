"""The daemon's settings: a TOML file, environment variables over it, and nothing accepted that is not understood."""

import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from leasecache.errors import ConfigError
from leasecache.rules import RuleSet
from leasecache.target import import_attribute

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

GATES = ("auto", "standby", "snapshot", "replay")
_LEAST_TTL = 2  # s
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")
_RULES_LIMIT = 16 << 20  # bytes
_REQUIRED: Any = dataclasses.MISSING


def _key(
    about: str,
    default: Any = _REQUIRED,
    *,
    name: str = "",
    least: float = 0,
    most: float = math.inf,
    show: bool = True,
) -> Any:
    """Declare a key: `about` is its line in the reference; a number lies between `least` and `most`."""
    metadata = {"about": about, "name": name, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata, repr=show)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """`[source]`: where changes come from."""

    dsn: str = _key("the database node whose changes are decoded, as a Postgres connection string", show=False)
    slot: str = _key("the replication slot, one per daemon: 1 to 63 of a-z, 0-9 and _")
    publication: str = _key("the publication that the slot is read through")
    gate: str = _key("what tells that a change is visible: auto, standby, snapshot or replay", "auto")
    readers: tuple[str, ...] = _key("further database nodes that fills read from, one each", (), show=False)

    def __post_init__(self) -> None:
        if not _SLOT_NAME.fullmatch(self.slot):
            raise ConfigError(f"source.slot {self.slot!r}: a slot name has 1 to 63 of a-z, 0-9 and _")
        if not (self.publication.isprintable() and len(self.publication.encode()) <= 63):
            raise ConfigError(f"source.publication {self.publication!r}: a name has 1 to 63 bytes, all printable")
        if self.gate not in GATES:
            raise ConfigError(f"source.gate {self.gate!r}: write one of {', '.join(GATES)}{_close(self.gate, GATES)}")
        if self.gate == "replay" and not self.readers:
            raise ConfigError("source.gate: replay waits for source.readers; name there the nodes that fills read from")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """`[cache]`: the nodes to invalidate on."""

    url: str = _key("the cache, as the application names it", show=False)
    more: tuple[str, ...] = _key("further caches with the same namespace and rules", (), show=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulesSettings:
    """`[rules]`: which keys a changed row touches."""

    imports: tuple[str, ...] = _key('caches of the application, as "module:attribute"', (), name="import")
    file: str | None = _key("what `leasecache rules` printed; starts from the configuration's folder", None)

    def __post_init__(self) -> None:
        if not self.imports and self.file is None:
            raise ConfigError('rules: give import = ["module:cache"], or file = "rules.json"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """`[guard]`: for how long the nodes of the cache are vouched for."""

    ttl: float = _key(
        "s that a node is believed without news from the daemon, 2 or more; "
        "0 = for as long as it keeps the record, and while it is away the acknowledgement is held back",
        60.0,
        most=86_400,
    )
    slots: tuple[str, ...] = _key(
        "the slots of all daemons that vouch for these caches, one per shard of the database; empty = this one alone",
        (),
    )

    def __post_init__(self) -> None:
        if 0 < self.ttl < _LEAST_TTL:  # nodes count in whole seconds, and a quarter of it passes between renewals
            raise ConfigError(f"guard.ttl {self.ttl:g}: write 0, or {_LEAST_TTL} s or more")
        for slot in self.slots:  # each is part of a key on the nodes
            if not _SLOT_NAME.fullmatch(slot):
                raise ConfigError(f"guard.slots {slot!r}: a slot name has 1 to 63 of a-z, 0-9 and _")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JournalSettings:
    """`[journal]`: where keys wait for a node that cannot be reached."""

    directory: str | None = _key(
        "a folder on a disk that lasts, else that of systemd's StateDirectory=; "
        "without one an unreachable node holds the acknowledgement",
        None,
    )
    limit: int = _key("MiB per node; beyond it the node gets a new generation when it is back", 256, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitsSettings:
    """`[limits]`: what one transaction may cost."""

    transaction_keys: int = _key("keys of one transaction; more of them make a new generation", 100_000, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """`[drift]`: how the daemon notices that publication or tables have changed."""

    every: float = _key("s between two looks at the catalogues", 30.0, least=0.1, most=86_400)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatusSettings:
    """`[status]`: the status server."""

    listen: str | None = _key('"host:port" of status page, metrics and health, port 0 = any; none = no server', None)
    lag: float = _key(
        "s that W may be behind, or gate, node or guard be stuck, before /readyz says no", 30.0, least=0.1
    )

    def __post_init__(self) -> None:
        if self.listen is not None and self.address is None:
            raise ConfigError(f'status.listen {self.listen!r}: write "host:port", such as "127.0.0.1:9187"')

    @property
    def address(self) -> tuple[str, int] | None:
        """Return host and port, None when there is no server or `listen` is malformed."""
        host, _, port = (self.listen or "").rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            return None
        return host.strip("[]"), int(port)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the daemon is told."""

    source: SourceSettings
    cache: CacheSettings
    rules: RulesSettings
    guard: GuardSettings = GuardSettings()
    journal: JournalSettings = JournalSettings()
    limits: LimitsSettings = LimitsSettings()
    drift: DriftSettings = DriftSettings()
    status: StatusSettings = StatusSettings()


_TABLES: dict[str, type[Any]] = {field.name: field.type for field in dataclasses.fields(Settings)}  # type: ignore[misc]


def load_settings(path: Path | None, environment: Mapping[str, str]) -> Settings:
    """Read settings from the file at `path` (None = no file) and from LEASECACHE_<TABLE>_<KEY> in `environment`.

    Raises ConfigError naming the file or variable, the key and what belongs there.
    """
    where = "the environment" if path is None else str(path)
    document = {} if path is None else _read_toml(path)
    for table in document:
        if table not in _TABLES:
            raise ConfigError(f"{where}: unknown table [{table}]{_meant(table, _TABLES)}")
    tables = {name: _table(name, cls, document.get(name, {}), where, environment) for name, cls in _TABLES.items()}
    return Settings(**tables)


def load_rules(settings: RulesSettings, base: Path) -> RuleSet:
    """Return the rules that `settings` name; a relative `file` starts from the folder `base`.

    Raises ConfigError when a module or file cannot be read, there are no rules, or namespaces differ.
    """
    sets = [import_rules(target) for target in settings.imports]
    if settings.file is not None:
        sets.append(_read_rules(base / settings.file))
    namespaces = {rules.namespace for rules in sets if rules.namespace is not None}
    if len(namespaces) > 1:
        raise ConfigError(
            f"rules: caches of different namespaces ({', '.join(sorted(namespaces))}); run a daemon for each"
        )
    merged = tuple(rule for one in sets for rule in one.rules)
    if not merged:
        raise ConfigError("rules: there are none; give cached functions a depends_on=row(...)")
    return RuleSet(namespace=next(iter(namespaces), None), rules=merged)


def import_rules(target: str) -> RuleSet:
    """Return the rules of the Cache that `target` ("module:attribute") names. Raises ConfigError in one line."""
    found = import_attribute(target)
    rules = getattr(found, "rules", None)
    if not isinstance(rules, RuleSet):
        raise ConfigError(f"{target} is a {type(found).__name__}, not a Cache: it has no rules")
    return rules


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path} is not TOML: {_fault(error)}") from None
    return document


def _read_rules(path: Path) -> RuleSet:
    """Read rules, which are plain data: whatever the file holds, nothing of it is run."""
    try:
        with path.open("rb") as file:
            content = file.read(_RULES_LIMIT + 1)
        if len(content) > _RULES_LIMIT:
            raise ConfigError(f"rules.file: {path} is larger than {_RULES_LIMIT >> 20} MiB")
        document = json.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"rules.file: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"rules.file: {path} is not JSON: {_fault(error)}; make it with `leasecache rules`") from None
    return RuleSet.from_json(document)


def _fault(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())


def _table(table: str, cls: type[Any], given: Any, where: str, environment: Mapping[str, str]) -> Any:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: {table} must be a table, [{table}]")
    fields = {field.metadata.get("name") or field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {table}.{key}{_meant(key, fields)}")
        values[fields[key].name] = _checked(value, fields[key], f"{where}: {table}.{key}")
    values |= _from_environment(table, fields, environment)
    for key, field in fields.items():
        if field.name not in values and field.default is _REQUIRED:
            wanted = f"set it in [{table}] or as {_variable(table, key)}"
            raise ConfigError(f"{where}: {table}.{key} is missing (expected a string); {wanted}")
    return cls(**values)


def _from_environment(table: str, fields: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    known = {_variable(table, key): field for key, field in fields.items()}
    for variable, text in environment.items():
        if not variable.startswith(_variable(table, "")):
            continue
        if variable not in known:
            raise ConfigError(f"unknown environment variable {variable}{_meant(variable, known)}")
        field = known[variable]
        values[field.name] = _checked(_parsed(text, field), field, variable)
    return values


def _variable(table: str, key: str) -> str:
    return f"LEASECACHE_{table}_{key}".upper()


def _parsed(text: str, field: Any) -> Any:
    """Return what a variable says, as TOML would have it; text where no number can be read."""
    if field.type == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    if field.type in (int, float):
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            return float(text)
    return text


def _checked(value: Any, field: Any, where: str) -> Any:
    if field.type == tuple[str, ...]:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list of strings, not {_shown(value)}")
        for item in value:
            if not (item and isinstance(item, str)):
                raise ConfigError(f"{where} must be a list of strings, not with {_shown(item)} in it")
        return tuple(value)
    if field.type in (int, float):
        return _number(value, field, where)
    if isinstance(value, str) and value:
        return value
    raise ConfigError(f"{where} must be a non-empty string, not {_shown(value)}")


def _number(value: Any, field: Any, where: str) -> float:
    whole = field.type is int
    least, most = field.metadata["least"], field.metadata["most"]
    bounds = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
    wanted = f"{where} must be {'an integer' if whole else 'a number'}, {bounds}"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ConfigError(f"{wanted}, not {_shown(value)}")
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(f"{wanted}, not {value}")
    return int(value) if whole else float(value)


def _shown(value: Any) -> str:
    names = {dict: "a table", list: "a list", bool: "a boolean", int: "an integer", float: "a float", str: "a string"}
    return "an empty string" if value == "" else names.get(type(value), f"a {type(value).__name__}")


def _meant(word: str, known: Any) -> str:
    return _close(word, known) or f"; there are {', '.join(known)}"


def _close(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
