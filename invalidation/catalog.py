"""What the source's system catalogues say about the tables of the rules: read once, judged elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from leasecache.invalidation import triggers
from leasecache.invalidation.source import Connection, ask
from leasecache.rules import RuleSet


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column; `type` is the base type's name in pg_type, "enum" for any enum."""

    type: str
    not_null: bool
    generated: str  # "" no, "s" stored, "v" virtual
    deterministic: bool = True  # False: the database compares it by a rule of its own, such as without case


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

    oid: int
    schema: str
    name: str
    kind: str  # pg_class.relkind
    persistence: str  # "p" permanent, "u" unlogged, "t" temporary
    identity: str  # "d" default, "n" nothing, "f" full, "i" index
    columns: Mapping[str, Column]
    indexes: tuple[Index, ...]
    partitions: tuple["Table", ...] = ()  # the leaves
    children: tuple["Table", ...] = ()  # that inherit without being partitions

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

    oid: int
    operations: Mapping[str, bool]  # insert, update, delete, truncate
    via_root: bool  # partitions are sent under the name of their root
    generated: bool  # stored generated columns are sent
    tables: Mapping[tuple[str, str], Published]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A replication slot."""

    kind: str  # "logical" or "physical"
    plugin: str | None
    database: str | None
    wal_status: str | None  # "lost" = its log is gone
    active: bool
    failover: bool  # copied to standbys that may be promoted


@dataclass(frozen=True, kw_only=True)
class Role:
    """Who we are to the server."""

    name: str
    superuser: bool
    replication: bool
    monitor: bool  # may read pg_stat_wal_receiver and which process is which


@dataclass(frozen=True, kw_only=True)
class Link:
    """How we reach the server."""

    remote: bool  # over a network that others may listen to
    encrypted: bool
    verified: bool  # its certificate and name are checked


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A further node that fills read from, or why it does not answer."""

    where: str  # without password
    fault: str | None = None
    system: str | None = None
    in_recovery: bool = False
    monitor: bool = False
    link: Link | None = None


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that `check`, `setup`, the daemon's start and its looks need to know."""

    system: str  # system identifier: the same on a primary and its standbys
    role: Role
    link: Link
    free_slots: int
    free_senders: int
    wal_kept: int  # MiB of log that a slot may keep, -1 = no limit
    physical_slot: bool  # a standby has a slot on its primary
    drift_triggers: frozenset[str]  # events whose trigger is there, enabled and as `setup` makes it
    readers: tuple[Reader, ...] = ()
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
    ask(connection, _PATIENCE)
    ((version, in_recovery, wal_level, feedback, database, slots, senders, kept, physical),) = ask(connection, _SERVER)
    return Catalog(
        system=system_of(connection),
        role=read_role(connection),
        link=read_link(connection),
        free_slots=slots,
        free_senders=senders,
        wal_kept=kept,
        physical_slot=physical,
        drift_triggers=_drift_triggers(connection),
        version=version,
        in_recovery=in_recovery,
        wal_level=wal_level,
        hot_standby_feedback=feedback,
        database=database,
        publication_name=publication,
        publication=_publication(connection, publication, version),
        slot_name=slot,
        slot=_slot(connection, slot),
        tables=_tables(connection, sorted({(rule.schema, rule.table) for rule in rules.rules})),
    )


def system_of(connection: Connection) -> str:
    """Return the system identifier of the server."""
    ((system,),) = ask(connection, "select system_identifier::text from pg_control_system()")
    return str(system)


def read_role(connection: Connection) -> Role:
    """Return who we are to the server."""
    ((name, superuser, replication, monitor),) = ask(connection, _ROLE)
    return Role(name=name, superuser=superuser, replication=replication, monitor=monitor)


def read_link(connection: Connection) -> Link:
    """Return how this connection reaches its server."""
    info = connection.info
    remote = bool(info.hostaddr) and not ip_address(info.hostaddr).is_loopback
    encrypted = connection.pgconn.ssl_in_use
    verified = encrypted and info.get_parameters().get("sslmode") == "verify-full"
    return Link(remote=remote, encrypted=encrypted, verified=verified)


def _slot(connection: Connection, name: str) -> Slot | None:
    for kind, plugin, database, wal_status, active, failover in ask(connection, _SLOT, name):
        return Slot(
            kind=kind, plugin=plugin, database=database, wal_status=wal_status, active=active, failover=failover
        )
    return None


def _drift_triggers(connection: Connection) -> frozenset[str]:
    return frozenset(
        event
        for name, event, body in ask(connection, _TRIGGERS, list(triggers.NAMES.values()))
        if triggers.NAMES.get(event) == name and body == triggers.BODY
    )


def _publication(connection: Connection, name: str, version: int) -> Publication | None:
    rows = ask(connection, _PUBLICATION, name)
    if not rows:
        return None
    oid, insert, update, delete, truncate, via_root, generated = rows[0]
    tables = {
        (schema, table): Published(columns=None if columns is None else frozenset(columns), row_filter=row_filter)
        for schema, table, columns, row_filter in ask(
            connection, _PUBLISHED if version >= 150000 else _PUBLISHED_14, name
        )
    }
    operations = {"insert": insert, "update": update, "delete": delete, "truncate": truncate}
    return Publication(oid=oid, operations=operations, via_root=via_root, generated=generated, tables=tables)


def _tables(connection: Connection, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Table]:
    roots = ask(connection, _TABLES, [schema for schema, _ in names], [table for _, table in names])
    below = ask(connection, _BELOW, [row[0] for row in roots])
    everything = [row[0] for row in roots] + [row[2] for row in below]
    columns: dict[int, dict[str, Column]] = {}
    for oid, name, type_name, not_null, generated, deterministic in ask(connection, _COLUMNS, everything, everything):
        columns.setdefault(oid, {})[name] = Column(
            type=type_name, not_null=not_null, generated=generated, deterministic=deterministic
        )
    indexes: dict[int, list[Index]] = {}
    for oid, name, keys, primary, identity, usable in ask(connection, _INDEXES, everything):
        index = Index(name=name, columns=tuple(keys), primary=primary, identity=identity, usable=usable)
        indexes.setdefault(oid, []).append(index)

    def table(row: Sequence[Any]) -> Table:
        oid, schema, name, kind, persistence, identity = row
        return Table(
            oid=oid,
            schema=schema,
            name=name,
            kind=kind,
            persistence=persistence,
            identity=identity,
            columns=columns.get(oid, {}),
            indexes=tuple(indexes.get(oid, ())),
            partitions=tuple(table(row[2:]) for row in below if row[0] == oid and row[1]),
            children=tuple(table(row[2:]) for row in below if row[0] == oid and not row[1]),
        )

    return {(root[1], root[2]): table(root) for root in roots}


_PATIENCE = "select set_config('lock_timeout', '5s', false)"  # a view of the publication locks its tables
_SERVER = """
select current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'),
       current_setting('hot_standby_feedback')::bool, current_database()::text,
       current_setting('max_replication_slots')::int - (select count(*)::int from pg_replication_slots),
       current_setting('max_wal_senders')::int - (select count(*)::int from pg_stat_replication),
       (select setting::int from pg_settings where name = 'max_slot_wal_keep_size'),
       current_setting('primary_slot_name') <> ''"""
_ROLE = """
select rolname::text, rolsuper, rolsuper or rolreplication, pg_has_role(oid, 'pg_monitor', 'usage')
  from pg_roles where rolname = current_user"""
_SLOT = """
select slot_type, plugin::text, database::text, wal_status, active,
       coalesce((to_jsonb(s) ->> 'failover')::bool, false)
  from pg_replication_slots s where slot_name = %s"""
_TRIGGERS = """
select t.evtname::text, t.evtevent::text, p.prosrc
  from pg_event_trigger t join pg_proc p on p.oid = t.evtfoid
 where t.evtname = any(%s::text[]) and t.evtenabled in ('O', 'A') and t.evttags is null"""
_PUBLICATION = """
select oid::int8, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
       coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 's'
  from pg_publication p where pubname = %s"""
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
_BELOW = f"""
with recursive tree (root, oid, partitioned) as (
  select c.oid, c.oid, c.relkind = 'p' from pg_class c where c.oid = any(%s::oid[])
  union all
  select tree.root, i.inhrelid, tree.partitioned from tree join pg_inherits i on i.inhparent = tree.oid)
select tree.root::int8, tree.partitioned, {_CLASS} from tree
  join pg_class c on c.oid = tree.oid and c.oid <> tree.root and c.relkind <> 'p'
  join pg_namespace n on n.oid = c.relnamespace
 order by n.nspname, c.relname"""  # what pg_partition_tree() says, without its locks
_COLUMNS = """
with recursive base (type, oid) as (
  select distinct a.atttypid, a.atttypid from pg_attribute a where a.attrelid = any(%s::oid[])
  union all
  select base.type, t.typbasetype from base join pg_type t on t.oid = base.oid and t.typtype = 'd')
select a.attrelid::int8, a.attname::text, case when b.typtype = 'e' then 'enum' else b.typname::text end,
       a.attnotnull or t.typnotnull, a.attgenerated::text, coalesce(l.collisdeterministic, true)
  from pg_attribute a join pg_type t on t.oid = a.atttypid
  join base on base.type = a.atttypid join pg_type b on b.oid = base.oid and b.typtype <> 'd'
  left join pg_collation l on l.oid = a.attcollation
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
