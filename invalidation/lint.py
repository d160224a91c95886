"""Whether a source can serve a set of rules: each finding says what goes wrong, and what to run against it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leasecache.invalidation.catalog import Catalog, Table
from leasecache.invalidation.ddl import identity_ddl, needed_columns, plan, publication_ddl, qualified, whole
from leasecache.rules import Rule, RuleSet

TYPES = {  # key kind → column types (pg_type.typname) whose text renders to the same key
    "int": frozenset({"int2", "int4", "int8"}),
    "str": frozenset({"text", "varchar", "name", "enum"}),
    "bool": frozenset({"bool"}),
    "uuid": frozenset({"uuid"}),
    "date": frozenset({"date"}),
    "bytes": frozenset({"bytea"}),
}
_KINDS = {kind_type: kind for kind, types in TYPES.items() for kind_type in types}
_BY_SETUP = {
    "publication-missing",
    "publication-operations",
    "not-published",
    "published-in-part",
    "slot-missing",
    "identity",
}
_REFUSED = {
    "bpchar": "char(n) is padded with blanks; alter the column to text",
    "citext": "citext is compared without case, keys are not; alter the column to text and compare lower(...)",
    "numeric": "numeric has many texts for one number; alter the column to bigint or text",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    code: str
    table: str | None = None
    rule: str | None = None  # the cached function
    consequence: str  # one sentence, without the full stop
    remedy: tuple[str, ...] = ()  # SQL, or what to change
    fatal: bool = True  # the daemon refuses to start
    note: bool = False  # worth knowing, and no fault

    @property
    def by_setup(self) -> bool:
        """Return whether `leasecache setup --apply` puts it right."""
        return self.code in _BY_SETUP

    def sentence(self) -> str:
        """Return the finding in one line."""
        where = ", ".join(part for part in (self.rule, self.table) if part)
        return f"{where}: {self.consequence}" if where else self.consequence

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return {
            "code": self.code,
            "rule": self.rule,
            "table": self.table,
            "consequence": self.consequence,
            "remedy": list(self.remedy),
            "fatal": self.fatal,
            "note": self.note,
        }


def lint(rules: RuleSet, catalog: Catalog) -> list[Finding]:
    """Return everything that is wrong, the server first, then rule by rule."""
    findings = [*_server(catalog), *_publication(catalog), *_slot(catalog, rules)]
    needed = needed_columns(catalog, rules)
    for rule in rules.rules:
        table = catalog.tables.get((rule.schema, rule.table))
        if table is None:
            findings.append(_about(rule, "unknown-table", "there is no such table, so nothing invalidates these keys"))
            continue
        unfit = list(_table(rule, table)) or list(_columns(rule, table))
        findings += unfit or _identity(rule, table, needed[rule.schema, rule.table])
        findings += _published(rule, table, catalog)
    return findings


def _about(rule: Rule, code: str, consequence: str, remedy: tuple[str, ...] = (), *, fatal: bool = True) -> Finding:
    table = f"{rule.schema}.{rule.table}"
    return Finding(code=code, rule=rule.function, table=table, consequence=consequence, remedy=remedy, fatal=fatal)


def _server(catalog: Catalog) -> Iterator[Finding]:
    if catalog.wal_level != "logical":
        yield Finding(
            code="wal-level",
            consequence=f"wal_level is {catalog.wal_level}, so the server cannot decode changes",
            remedy=("alter system set wal_level = 'logical'", "-- then restart the server"),
        )
    if catalog.in_recovery and catalog.version < 160000:
        yield Finding(
            code="standby-version",
            consequence="a standby decodes from PostgreSQL 16 on, this one is older",
            remedy=("-- name the primary in source.dsn",),
        )
    if catalog.in_recovery and not catalog.hot_standby_feedback:
        yield Finding(
            code="hot-standby-feedback",
            consequence="hot_standby_feedback is off, so a vacuum on the primary can invalidate the standby's slot",
            remedy=("alter system set hot_standby_feedback = on", "select pg_reload_conf()"),
            fatal=False,
        )


def _publication(catalog: Catalog) -> Iterator[Finding]:
    if catalog.publication is None:
        yield Finding(
            code="publication-missing",
            consequence=f"there is no publication {catalog.publication_name!r}, so no change is sent",
            remedy=tuple(publication_ddl(catalog)),
        )
        return
    missing = [name for name, sent in catalog.publication.operations.items() if not sent]
    if missing:
        yield Finding(
            code="publication-operations",
            consequence=f"publication {catalog.publication_name!r} does not send {', '.join(missing)}",
            remedy=tuple(publication_ddl(catalog)[:1]),
        )


def _slot(catalog: Catalog, rules: RuleSet) -> Iterator[Finding]:
    name, slot = catalog.slot_name, catalog.slot
    drop = f"select pg_drop_replication_slot('{name}')"
    if slot is None:
        create = tuple(step.sql for step in plan(catalog, rules) if step.where == "source")
        yield Finding(code="slot-missing", consequence=f"there is no slot {name!r}", remedy=create)
    elif slot.kind != "logical" or slot.plugin != "pgoutput":
        what = slot.plugin or slot.kind
        yield Finding(code="slot-plugin", consequence=f"slot {name!r} is of {what}, not of pgoutput", remedy=(drop,))
    elif slot.database != catalog.database:
        consequence = f"slot {name!r} belongs to database {slot.database!r}, not to {catalog.database!r}"
        yield Finding(code="slot-database", consequence=consequence, remedy=("-- choose another source.slot",))
    elif slot.wal_status == "lost":
        yield Finding(
            code="slot-lost", consequence=f"slot {name!r} has lost changes", remedy=(drop, "-- clear the cache")
        )


def _table(rule: Rule, table: Table) -> Iterator[Finding]:
    if table.kind not in "rp":
        yield _about(rule, "not-a-table", "this is not a table, and only tables are replicated")
    elif table.persistence != "p":
        remedy = (f"alter table {qualified(table)} set logged",) if table.persistence == "u" else ()
        yield _about(rule, "not-logged", "changes of an unlogged or temporary table are not replicated", remedy)


def _published(rule: Rule, table: Table, catalog: Catalog) -> Iterator[Finding]:
    publication = catalog.publication
    if publication is None or table.kind not in "rp" or table.persistence != "p":
        return
    remedy = tuple(sql for sql in publication_ddl(catalog) if qualified(table) in sql or "via_partition_root" in sql)
    name = catalog.publication_name
    if (table.schema, table.name) not in publication.tables:
        yield _about(
            rule, "not-published", f"publication {name!r} does not send this table, so its keys stay stale", remedy
        )
    elif not whole(publication, table):
        why = f"publication {name!r} leaves out rows or columns of this table, whose keys may stay stale"
        yield _about(rule, "published-in-part", why, remedy)


def _columns(rule: Rule, table: Table) -> Iterator[Finding]:
    for name in (*rule.fields.values(), *(rule.columns or ())):
        if name not in table.columns:
            yield _about(rule, "unknown-column", f"there is no column {name!r}, so nothing invalidates these keys")
        elif table.columns[name].generated:
            yield _about(rule, "generated-column", f"column {name!r} is generated, and such columns are not sent")
    for field, name in rule.fields.items():
        if name in table.columns and table.columns[name].type not in TYPES[rule.kinds[field]]:
            yield _mismatch(rule, field, name, table.columns[name].type)


def _mismatch(rule: Rule, field: str, column: str, found: str) -> Finding:
    kind = rule.kinds[field]
    if found in _REFUSED:
        fix = _REFUSED[found]
    elif found in _KINDS:
        fix = f"annotate {field} as {_KINDS[found]}"
    else:
        fix = f"bind {field} to a column of type {' or '.join(sorted(TYPES[kind]))}"
    consequence = f"{field} is {kind} but column {column!r} is {found}, so their keys differ"
    return _about(rule, "type-mismatch", consequence, (f"-- {fix}",))


def _identity(rule: Rule, table: Table, needed: frozenset[str]) -> Iterator[Finding]:
    everywhere = (table, *table.partitions)
    lacking = sorted(set(rule.fields.values()) - frozenset.intersection(*(one.identity_columns for one in everywhere)))
    if lacking:
        columns = ", ".join(lacking)
        if not any(one.identity_columns for one in everywhere):
            consequence = "there is no replica identity, so once published the application's own UPDATE and DELETE fail"
        else:
            consequence = (
                f"an UPDATE that changes {columns} leaves the entry of the old {columns} stale, "
                f"and a DELETE does not say which {columns} the row had"
            )
        yield _about(rule, "identity", consequence, tuple(identity_ddl(table, needed)))
    if rule.columns is not None and any(one.identity != "f" for one in everywhere):
        consequence = (
            f"columns={rule.columns!r} filters nothing without REPLICA IDENTITY FULL: every update invalidates"
        )
        remedy = tuple(
            f"alter table {qualified(one)} replica identity full" for one in everywhere if one.identity != "f"
        )
        yield _about(rule, "columns-filter", consequence, remedy, fatal=False)
