"""What the source's system catalogues say about the tables of the rules: read once, judged elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leasecache.invalidation.source import Connection, ask
from leasecache.rules import RuleSet


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column; `type` is the base type's name in pg_type, "enum" for any enum."""

    type: str
    not_null: bool
    generated: bool


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index, with its key columns (expressions apart) in order."""

    name: str
    columns: tuple[str, ...]
    primary: bool
    identity: bool  # chosen by REPLICA IDENTITY USING INDEX
    usable: bool  # unique, valid, immediate, not partial, no expressions: fit to be a replica identity


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, or a partition of one."""

    schema: str
    name: str
    kind: str  # pg_class.relkind
    persistence: str  # "p" permanent, "u" unlogged, "t" temporary
    identity: str  # "d" default, "n" nothing, "f" full, "i" index
    columns: Mapping[str, Column]
    indexes: tuple[Index, ...]
    partitions: tuple["Table", ...] = ()  # the leaves

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Return the columns of the primary key that can identify a row, () without one."""
        return next((index.columns for index in self.indexes if index.primary and index.usable), ())

    @property
    def identity_columns(self) -> frozenset[str]:
        """Return the columns that old tuples carry."""
        if self.identity == "f":
            return frozenset(self.columns)
        if self.identity == "d":
            return frozenset(self.primary_key)
        return frozenset(column for index in self.indexes if index.identity for column in index.columns)


@dataclass(frozen=True, kw_only=True)
class Published:
    """How a publication sends one table."""

    columns: frozenset[str] | None  # None = all
    row_filter: str | None


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A publication and the tables that it sends, under the names that it sends them."""

    operations: Mapping[str, bool]  # insert, update, delete, truncate
    via_root: bool  # partitions are sent under the name of their root
    tables: Mapping[tuple[str, str], Published]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A replication slot."""

    kind: str  # "logical" or "physical"
    plugin: str | None
    database: str | None
    wal_status: str | None  # "lost" = its log is gone


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that `check`, `setup` and the daemon's start need to know."""

    version: int  # server_version_num
    in_recovery: bool
    wal_level: str
    hot_standby_feedback: bool
    database: str
    publication_name: str
    publication: Publication | None
    slot_name: str
    slot: Slot | None
    tables: Mapping[tuple[str, str], Table]


def read_catalog(connection: Connection, slot: str, publication: str, rules: RuleSet) -> Catalog:
    """Read the catalogues. Raises SourceError when the server refuses a query."""
    ((version, in_recovery, wal_level, feedback, database),) = ask(connection, _SERVER)
    return Catalog(
        version=version,
        in_recovery=in_recovery,
        wal_level=wal_level,
        hot_standby_feedback=feedback,
        database=database,
        publication_name=publication,
        publication=_publication(connection, publication, version),
        slot_name=slot,
        slot=next(
            (Slot(kind=k, plugin=p, database=d, wal_status=w) for k, p, d, w in ask(connection, _SLOT, slot)), None
        ),
        tables=_tables(connection, sorted({(rule.schema, rule.table) for rule in rules.rules})),
    )


def _publication(connection: Connection, name: str, version: int) -> Publication | None:
    rows = ask(connection, _PUBLICATION, name)
    if not rows:
        return None
    insert, update, delete, truncate, via_root = rows[0]
    tables = {
        (schema, table): Published(columns=None if columns is None else frozenset(columns), row_filter=row_filter)
        for schema, table, columns, row_filter in ask(
            connection, _PUBLISHED if version >= 150000 else _PUBLISHED_14, name
        )
    }
    operations = {"insert": insert, "update": update, "delete": delete, "truncate": truncate}
    return Publication(operations=operations, via_root=via_root, tables=tables)


def _tables(connection: Connection, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Table]:
    roots = ask(connection, _TABLES, [schema for schema, _ in names], [table for _, table in names])
    leaves = ask(connection, _LEAVES, [row[0] for row in roots])
    everything = [row[0] for row in roots] + [row[1] for row in leaves]
    columns: dict[int, dict[str, Column]] = {}
    for oid, name, type_name, not_null, generated in ask(connection, _COLUMNS, everything):
        columns.setdefault(oid, {})[name] = Column(type=type_name, not_null=not_null, generated=generated)
    indexes: dict[int, list[Index]] = {}
    for oid, name, keys, primary, identity, usable in ask(connection, _INDEXES, everything):
        index = Index(name=name, columns=tuple(keys), primary=primary, identity=identity, usable=usable)
        indexes.setdefault(oid, []).append(index)

    def table(row: Sequence[Any], partitions: tuple[Table, ...] = ()) -> Table:
        oid, schema, name, kind, persistence, identity = row
        return Table(
            schema=schema,
            name=name,
            kind=kind,
            persistence=persistence,
            identity=identity,
            columns=columns.get(oid, {}),
            indexes=tuple(indexes.get(oid, ())),
            partitions=partitions,
        )

    return {
        (root[1], root[2]): table(root, tuple(table(leaf[1:]) for leaf in leaves if leaf[0] == root[0]))
        for root in roots
    }


_SERVER = """
select current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'),
       current_setting('hot_standby_feedback')::bool, current_database()::text"""
_SLOT = """
select slot_type, plugin::text, database::text, wal_status from pg_replication_slots where slot_name = %s"""
_PUBLICATION = """
select pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot from pg_publication where pubname = %s"""
_PUBLISHED = """
select schemaname::text, tablename::text, attnames::text[], rowfilter from pg_publication_tables where pubname = %s"""
_PUBLISHED_14 = """
select schemaname::text, tablename::text, null::text[], null::text from pg_publication_tables where pubname = %s"""
_CLASS = "c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text"
_TABLES = f"""
select {_CLASS} from unnest(%s::text[], %s::text[]) as wanted (nspname, relname)
  join pg_namespace n on n.nspname = wanted.nspname
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.relname
 where c.relkind not in ('i', 'I', 'S', 'c', 't')"""
_LEAVES = f"""
select root::int8, {_CLASS} from unnest(%s::oid[]) as root
  join pg_class r on r.oid = root and r.relkind = 'p'
  cross join pg_partition_tree(root) as tree
  join pg_class c on c.oid = tree.relid and tree.isleaf and c.relkind <> 'p'
  join pg_namespace n on n.oid = c.relnamespace"""
_COLUMNS = """
select a.attrelid::int8, a.attname::text,
       case when coalesce(b.typtype, t.typtype) = 'e' then 'enum' else coalesce(b.typname, t.typname)::text end,
       a.attnotnull or t.typnotnull, a.attgenerated <> ''
  from pg_attribute a join pg_type t on t.oid = a.atttypid left join pg_type b on b.oid = t.typbasetype
 where a.attrelid = any(%s::oid[]) and a.attnum > 0 and not a.attisdropped
 order by a.attrelid, a.attnum"""
_INDEXES = """
select i.indrelid::int8, c.relname::text,
       array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality as k (attnum, position)
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
              where k.position <= i.indnkeyatts order by k.position),
       i.indisprimary, i.indisreplident,
       i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
  from pg_index i join pg_class c on c.oid = i.indexrelid
 where i.indrelid = any(%s::oid[])
 order by c.relname"""
