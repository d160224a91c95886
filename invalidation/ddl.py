"""The SQL that makes a source fit for its rules: replica identities, publication, event triggers, slot, in that order.

An identity comes before the publication, because publishing updates of a table without one makes the application's
updates fail; the publication comes before the slot, because a slot only decodes with a publication that existed at
its time.
"""

import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import NamedTuple

from leasecache.errors import SourceError
from leasecache.invalidation.catalog import Catalog, Index, Publication, Table
from leasecache.invalidation.source import Connection, ask, connect, execute, readdressed
from leasecache.invalidation.triggers import triggers_ddl, truncate_ddl
from leasecache.rules import RuleSet

_ALL_OPERATIONS = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
_REPLAY_POLL, _REPLAY_WAIT = 0.1, 30.0  # s
_LOCK_WAIT = 5  # s


class Step(NamedTuple):
    """One statement of a setup."""

    where: str  # "primary" or "source"
    sql: str
    why: str
    optional: bool = False


def plan(catalog: Catalog, rules: RuleSet) -> list[Step]:
    """Return the statements that are still needed; none when the source is fit. Unknown tables are left out."""
    steps = []
    for table, needed in needed_columns(catalog, rules).items():
        found = catalog.tables[table]
        why = f"old rows of {found.schema}.{found.name} must carry {', '.join(sorted(needed))}"
        statements = identity_ddl(found, needed, catalog.publication_name)
        steps += [Step("primary", sql, why) for sql in statements if not sql.startswith("--")]
    steps += [Step("primary", sql, "the stream carries published tables only") for sql in publication_ddl(catalog)]
    why = "the log says when a publication or table changes (optional; needs a superuser)"
    steps += [Step("primary", sql, why, optional=True) for sql in triggers_ddl(catalog.drift_triggers)]
    why = "the log says when a single partition is truncated (optional)"
    silent = [sql for one in catalog.tables.values() for sql in truncates(one)]
    steps += [Step("primary", sql, why, optional=True) for sql in dict.fromkeys(silent)]
    if catalog.slot is None:
        why = "the slot keeps changes until the daemon has acknowledged them"
        sql = slot_ddl(catalog.slot_name, version=catalog.version, in_recovery=catalog.in_recovery)
        steps.append(Step("source", sql, why))
    return steps


def slot_ddl(slot: str, *, version: int, in_recovery: bool) -> str:
    """Return the statement that creates a slot; on a primary from 17 on, standbys get a copy to be promoted with."""
    copied = ", failover => true" if version >= 170000 and not in_recovery else ""
    return f"select pg_create_logical_replication_slot({literal(slot)}, 'pgoutput'{copied})"


def needed_columns(catalog: Catalog, rules: RuleSet) -> dict[tuple[str, str], frozenset[str]]:
    """Return, for each existing table, the columns that the old rows must carry for all its rules."""
    needed: dict[tuple[str, str], frozenset[str]] = {}
    for rule in rules.rules:
        name = (rule.schema, rule.table)
        if name in catalog.tables and catalog.tables[name].columns.keys() >= set(rule.fields.values()):
            needed[name] = needed.get(name, frozenset()) | frozenset(rule.fields.values())
    return needed


def identity_ddl(table: Table, needed: frozenset[str], publication: str) -> list[str]:
    """Return the statements after which old rows of `table` carry the columns `needed`.

    Where each would make updates fail, as another publication than ours does not send the identity's columns, there
    is only a comment that says so.
    """
    if table.partitions or table.kind == "p":  # an identity is not inherited, and the root's says what is sent
        unfit = [one for one in (table, *table.partitions) if not needed <= one.identity_columns]
        blocked = [sql for one in unfit for sql in _blocked(one, one.full, publication)]
        return blocked or [_full(one) for one in unfit]
    if needed <= table.identity_columns:
        return []
    reasons: list[str] = []
    for columns, statements in _identities(table, needed):
        blocked = _blocked(table, columns, publication)
        if not blocked:
            return statements
        reasons += blocked
    return list(dict.fromkeys(reasons))


def _identities(table: Table, needed: frozenset[str]) -> Iterator[tuple[frozenset[str], list[str]]]:
    """Return what would serve as an identity, the cheapest first: its columns, and the statements for it."""
    name = qualified(table)
    if needed <= set(table.primary_key):
        yield frozenset(table.primary_key), [f"alter table {name} replica identity default"]
    index = _suitable(table, needed)
    if index is not None:
        yield frozenset(index.columns), [f"alter table {name} replica identity using index {quoted(index.name)}"]
    elif table.primary_key and all(table.columns[column].not_null for column in needed):
        columns = (*sorted(needed), *(column for column in table.primary_key if column not in needed))
        yield frozenset(columns), _new_index(table, columns)
    yield table.full, [_full(table)]


def _new_index(table: Table, columns: Sequence[str]) -> list[str]:
    name = f"{table.name[:40]}_leasecache_{zlib.crc32(','.join(columns).encode()):08x}"
    listed = ", ".join(quoted(column) for column in columns)
    # A build that was interrupted leaves an index of that name behind, which is of no use.
    remains = any(index.name == name for index in table.indexes)
    drop = [f"drop index concurrently if exists {quoted(table.schema)}.{quoted(name)}"] if remains else []
    return [
        *drop,
        f"create unique index concurrently if not exists {quoted(name)} on {qualified(table)} ({listed})",
        f"alter table {qualified(table)} replica identity using index {quoted(name)}",
    ]


def _full(table: Table) -> str:
    return f"alter table {qualified(table)} replica identity full"


def _blocked(table: Table, columns: frozenset[str], ours: str) -> list[str]:
    """Return, as comments, what makes updates of the table fail once `columns` are its identity."""
    if any(table.columns[column].generated == "v" for column in columns):
        return [
            f"-- {table.name} has virtual columns: it needs a unique index on the key columns, all of them not null"
        ]
    return [
        f"-- publication {quoted(one.publication)} must send all columns of {table.name}, else updates of it would fail"
        for one in table.senders
        if one.publication != ours and not (columns <= one.columns and (columns == table.full or not one.filtered))
    ]


def _suitable(table: Table, needed: frozenset[str]) -> Index | None:
    fit = [
        index
        for index in table.indexes
        if index.usable and needed <= set(index.columns) and all(table.columns[name].not_null for name in index.columns)
    ]
    return min(fit, key=lambda index: (len(index.columns), index.name), default=None)


def truncates(table: Table) -> list[str]:
    """Return the statements after which every partition of `table` says when it is truncated."""
    return truncate_ddl([qualified(leaf) for leaf in table.partitions if leaf.kind == "r" and not leaf.tells_truncate])


def publication_ddl(catalog: Catalog) -> list[str]:
    """Return the statements after which the publication sends every existing table of the rules, whole."""
    name = quoted(catalog.publication_name)
    logged = [table for table in catalog.tables.values() if table.kind in "rp" and table.persistence == "p"]
    tables = [table for table in logged if catalog.sent_as(table) is None]
    if not tables:
        return []
    generated = any(column.generated == "s" for table in tables for column in table.columns.values())
    # From 18 on updates of a table whose identity has a generated column fail unless that is sent.
    sent = ["publish_generated_columns = stored"] if generated and catalog.version >= 180000 else []
    if catalog.publication is None:
        return [f"create publication {name} for table {_listed(tables)} with ({', '.join([_ALL_OPERATIONS, *sent])})"]
    statements = []
    if sent and not catalog.publication.generated:
        statements.append(f"alter publication {name} set ({sent[0]})")
    if not all(catalog.publication.operations.values()):
        statements.append(f"alter publication {name} set ({_ALL_OPERATIONS})")
    elif not catalog.publication.via_root and any(table.kind == "p" for table in tables):
        statements.append(f"alter publication {name} set (publish_via_partition_root = true)")
    for table in tables:
        statements += _add_table(catalog.publication, name, table)
    return statements


def _add_table(publication: Publication, name: str, table: Table) -> list[str]:
    published = publication.tables.get((table.schema, table.name))
    if published is None:
        roots_arrive = publication.via_root or not table.partitions
        sent = any((leaf.schema, leaf.name) in publication.tables for leaf in table.partitions)
        return [f"alter publication {name} add table {qualified(table)}"] if roots_arrive or not sent else []
    if whole(publication, table):
        return []
    # One text, run as one transaction: no change is to slip through between the two.
    return [
        f"alter publication {name} drop table {qualified(table)}; alter publication {name} add table {qualified(table)}"
    ]


def whole(publication: Publication, table: Table) -> bool:
    """Return whether a published table is sent with every row and column."""
    published = publication.tables[table.schema, table.name]
    stored = {
        name
        for name, column in table.columns.items()
        if not column.generated or (column.generated == "s" and publication.generated)
    }
    return published.row_filter is None and (published.columns is None or stored <= published.columns)


def apply(steps: Sequence[Step], source: str, primary: str | None) -> list[str]:
    """Run the steps and return why optional ones were refused; `primary` is its DSN when `source` is a standby's.

    Raises SourceError naming the statement that was refused.
    """
    refusals = []
    with connect(source) as here, connect(primary or source) as there:
        for step in steps:
            if step.where == "primary":
                refusals += _run_step(there, step)
        for step in steps:
            if step.where == "source" and primary is None:
                execute(here, step.sql)
            elif step.where == "source":
                _wait_replayed(here, there)
                create_on_standby(here, there, step.sql)
    return refusals


def _run_step(connection: Connection, step: Step) -> list[str]:
    # A table in use is left alone: whoever queues for its lock would hold up everybody behind it. An index that is
    # built concurrently holds up nobody, and waits for the transactions that run.
    execute(connection, f"set lock_timeout = '{0 if ' concurrently ' in step.sql else _LOCK_WAIT}s'")
    try:
        execute(connection, step.sql)
    except SourceError as error:
        if step.optional:
            return [str(error)]
        raise
    return []


def _wait_replayed(standby: Connection, primary: Connection) -> None:
    """Wait until the standby has what was just set up on the primary."""
    ((position,),) = ask(primary, "select pg_current_wal_lsn()::text")
    for _ in range(round(_REPLAY_WAIT / _REPLAY_POLL)):
        ((replayed,),) = ask(standby, "select pg_last_wal_replay_lsn() >= %s::pg_lsn", position)
        if replayed:
            return
        time.sleep(_REPLAY_POLL)
    raise SourceError(f"the standby has not replayed {position} within {_REPLAY_WAIT:.0f} s; run setup again later")


def create_on_standby(standby: Connection, primary: Connection, sql: str) -> None:
    """Create a slot; it waits for a record of running transactions that an idle primary writes only when asked."""
    with ThreadPoolExecutor(1) as pool:
        created = pool.submit(execute, standby, sql)
        while not created.done():
            ask(primary, "select pg_log_standby_snapshot()")
            wait_for([created], timeout=_REPLAY_POLL)
        created.result()


def find_primary(source: str, named: str | None) -> str | None:
    """Return the DSN of the primary that `source` follows (`named` if given), None when `source` is the primary.

    Raises SourceError when the server does not say where it is.
    """
    with connect(source) as connection:
        ((in_recovery,),) = ask(connection, "select pg_is_in_recovery()")
        if not in_recovery or named is not None:
            return named if in_recovery else None
        rows = ask(connection, "select sender_host, sender_port from pg_stat_wal_receiver")
    if not rows or rows[0][0] is None:
        raise SourceError("the standby does not say where its primary is (pg_monitor may); name it with --primary DSN")
    return readdressed(source, host=rows[0][0], port=rows[0][1])


def qualified(table: Table) -> str:
    """Return the table's name as SQL."""
    return f"{quoted(table.schema)}.{quoted(table.name)}"


def quoted(name: str) -> str:
    """Return an identifier as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a string literal as SQL."""
    return "'" + text.replace("'", "''") + "'"


def _listed(tables: Iterable[Table]) -> str:
    return ", ".join(qualified(table) for table in tables)
