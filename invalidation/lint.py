"""Whether a source can serve a set of rules: each finding says what goes wrong, and what to run against it."""

from collections.abc import Iterator

from leasecache.invalidation.catalog import Catalog, Column, Table
from leasecache.invalidation.ddl import (
    identity_ddl,
    needed_columns,
    publication_ddl,
    qualified,
    quoted,
    truncates,
    whole,
)
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.fitness import judge
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
_REFUSED = {
    "bpchar": "char(n) is padded with blanks; alter the column to text",
    "citext": "citext is compared without case, keys are not; alter the column to text and compare lower(...)",
    "numeric": "numeric has many texts for one number; alter the column to bigint or text",
}


def lint(rules: RuleSet, catalog: Catalog) -> list[Finding]:
    """Return everything that is wrong: the server first, then rule by rule, and a missing slot last."""
    findings = [*judge(catalog), *_publication(catalog)]
    findings += list(_bare(catalog))
    needed = needed_columns(catalog, rules)
    for name in needed:
        findings += _refused_updates(catalog.tables[name])
        findings += _truncates(catalog.tables[name])
    for rule in rules.rules:
        table = catalog.tables.get((rule.schema, rule.table))
        if table is None:
            findings.append(_about(rule, "unknown-table", "there is no such table, so nothing invalidates these keys"))
            continue
        unfit = list(_table(rule, table)) or list(_columns(rule, table, catalog))
        findings += unfit or _identity(rule, table, needed[rule.schema, rule.table], catalog)
        findings += _children(rule, table, rules)
        findings += _published(rule, table, catalog)
    # In the order in which the remedies are to be run: a slot decodes only with a publication that was there before it.
    return sorted(findings, key=lambda finding: finding.code == "slot-missing")


def _about(rule: Rule, code: str, consequence: str, remedy: tuple[str, ...] = (), *, fatal: bool = True) -> Finding:
    table = f"{rule.schema}.{rule.table}"
    return Finding(code=code, rule=rule.function, table=table, consequence=consequence, remedy=remedy, fatal=fatal)


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


def _bare(catalog: Catalog) -> Iterator[Finding]:
    """Report what our publication does to tables that no rule is about."""
    for name in catalog.publication.bare if catalog.publication else ():
        if name not in catalog.tables:
            yield Finding(
                code="no-identity",
                table=".".join(name),
                consequence="it is published without a replica identity, so the application's UPDATE and DELETE fail",
                remedy=(f"alter table {'.'.join(map(quoted, name))} replica identity full",),
                fatal=False,
            )


def _refused_updates(table: Table) -> Iterator[Finding]:
    for one in (table, *table.partitions):
        for sender in one.senders:
            if not one.identity_columns <= sender.columns:
                yield Finding(
                    code="updates-refused",
                    table=f"{one.schema}.{one.name}",
                    consequence=f"publication {sender.publication!r} leaves out columns of the replica identity, "
                    "so the application's own UPDATE and DELETE fail",
                    remedy=(f"-- let publication {quoted(sender.publication)} send all columns of the table",),
                )


def _truncates(table: Table) -> Iterator[Finding]:
    remedy = truncates(table)
    if remedy:
        yield Finding(
            code="partition-truncate",
            table=f"{table.schema}.{table.name}",
            consequence="TRUNCATE of one partition is not sent, so without the triggers of `leasecache setup` "
            "keys of its rows stay stale until the look every drift.every s",
            remedy=tuple(remedy),
            fatal=False,
            note=True,
        )


def _table(rule: Rule, table: Table) -> Iterator[Finding]:
    if table.kind not in "rp":
        yield _about(rule, "not-a-table", "this is not a table, and only tables are replicated")
    elif table.persistence != "p":
        remedy = (f"alter table {qualified(table)} set logged",) if table.persistence == "u" else ()
        yield _about(rule, "not-logged", "changes of an unlogged or temporary table are not replicated", remedy)
    for leaf in table.partitions:
        if leaf.kind != "r" or leaf.persistence != "p":
            what = (
                f"partition {leaf.schema}.{leaf.name} is foreign or unlogged, so changes of its rows are not replicated"
            )
            yield _about(rule, "not-logged", what)


def _children(rule: Rule, table: Table, rules: RuleSet) -> Iterator[Finding]:
    covered = {(one.schema, one.table) for one in rules.rules if one.template == rule.template}
    for child in table.children:
        if (child.schema, child.name) not in covered:
            name = f"{child.schema}.{child.name}"
            yield _about(
                rule,
                "inherited",
                f"a query of this table reads rows of {name} too, whose changes arrive under that name "
                "and leave their keys stale",
                (f"-- add row({name!r}, ...) to depends_on, or read from only {qualified(table)}",),
            )


def _published(rule: Rule, table: Table, catalog: Catalog) -> Iterator[Finding]:
    publication, root = catalog.publication, catalog.sent_as(table)
    if root is not None:
        shown = ".".join(root)
        consequence = f"changes of this partition are sent as changes of {shown}, so nothing invalidates these keys"
        yield _about(rule, "partition", consequence, (f"-- write row({shown!r}, ...) in depends_on",))
        return
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


def _columns(rule: Rule, table: Table, catalog: Catalog) -> Iterator[Finding]:
    for name in (*rule.fields.values(), *(rule.columns or ())):
        if name not in table.columns:
            yield _about(rule, "unknown-column", f"there is no column {name!r}, so nothing invalidates these keys")
        elif table.columns[name].generated and not _generated_sent(table, name, catalog):
            remedy = publication_ddl(catalog)[:1] if _sendable(table, name, catalog) else ()
            consequence = f"column {name!r} is generated and not sent, so nothing invalidates these keys"
            yield _about(rule, "generated-column", consequence, tuple(remedy))
    for field, name in rule.fields.items():
        if name in table.columns:
            yield from _type(rule, field, name, table.columns[name])


def _sendable(table: Table, column: str, catalog: Catalog) -> bool:
    return table.columns[column].generated == "s" and catalog.version >= 180000


def _generated_sent(table: Table, column: str, catalog: Catalog) -> bool:
    """Return whether a generated column is sent; without a publication, whether the one that is made would send it."""
    if catalog.publication is None:
        return _sendable(table, column, catalog)
    published = catalog.publication.tables.get((table.schema, table.name))
    return published is not None and published.columns is not None and column in published.columns


def _type(rule: Rule, field: str, name: str, column: Column) -> Iterator[Finding]:
    if column.type not in TYPES[rule.kinds[field]]:
        yield _mismatch(rule, field, name, column.type)
    elif not column.deterministic:
        consequence = (
            f"column {name!r} is compared by a rule of its own, keys are not: a change of one leaves others stale"
        )
        fix = f"-- give column {name!r} a deterministic collation, such as the default"
        yield _about(rule, "collation", consequence, (fix,))


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


def _identity(rule: Rule, table: Table, needed: frozenset[str], catalog: Catalog) -> Iterator[Finding]:
    everywhere = (table, *table.partitions)
    lacking = sorted(set(rule.fields.values()) - frozenset.intersection(*(one.identity_columns for one in everywhere)))
    if lacking:
        columns = ", ".join(lacking)
        if not any(one.identity_columns for one in everywhere):
            consequence = (
                "there is no replica identity, so once it is published the application's UPDATE and DELETE fail"
            )
        else:
            consequence = (
                f"an UPDATE that changes {columns} leaves the entry of the old {columns} stale, "
                f"and a DELETE does not say which {columns} the row had"
            )
        yield _about(rule, "identity", consequence, tuple(identity_ddl(table, needed, catalog.publication_name)))
    if rule.columns is not None and any(one.identity != "f" for one in everywhere):
        consequence = (
            f"columns={rule.columns!r} filters nothing without REPLICA IDENTITY FULL: every update invalidates"
        )
        remedy = tuple(
            f"alter table {qualified(one)} replica identity full" for one in everywhere if one.identity != "f"
        )
        yield _about(rule, "columns-filter", consequence, remedy, fatal=False)
