"""The questions that are put to a source, and the catalog that its answers make."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from leasecache.errors import SourceError
from leasecache.invalidation import triggers
from leasecache.invalidation.catalog import (
    Catalog,
    Column,
    Index,
    Link,
    Publication,
    Published,
    Reader,
    Role,
    Sender,
    Slot,
    Table,
)
from leasecache.invalidation.source import Connection, ask, connect, redact
from leasecache.rules import RuleSet


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
        tables=_tables(connection, sorted({(rule.schema, rule.table) for rule in rules.rules}), version),
    )


def read_reader(dsn: str) -> Reader:
    """Look at a further node that fills read from. Raises ConfigError when `dsn` cannot be read."""
    where = redact(dsn)
    try:
        with connect(dsn) as connection, connect(dsn) as again:
            if ask(connection, _PROCESS) != ask(again, _PROCESS):
                return Reader(where=where, fault="the dsn leads to different servers; name one node, not a balancer")
            ((in_recovery,),) = ask(connection, "select pg_is_in_recovery()")
            return Reader(
                where=where,
                system=system_of(connection),
                in_recovery=in_recovery,
                monitor=read_role(connection).monitor,
                link=read_link(connection),
            )
    except SourceError as error:
        return Reader(where=where, fault=str(error))


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
    for kind, plugin, database, wal_status, active, failover, two_phase in ask(connection, _SLOT, name):
        return Slot(
            kind=kind,
            plugin=plugin,
            database=database,
            wal_status=wal_status,
            active=active,
            failover=failover,
            two_phase=two_phase,
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
    return Publication(
        oid=oid,
        operations=operations,
        via_root=via_root,
        generated=generated,
        tables=tables,
        bare=tuple((schema, table) for schema, table in ask(connection, _BARE, name)) if update or delete else (),
    )


def _tables(connection: Connection, names: Sequence[tuple[str, str]], version: int) -> dict[tuple[str, str], Table]:
    roots = ask(connection, _TABLES, [schema for schema, _ in names], [table for _, table in names])
    below = ask(connection, _BELOW, [row[0] for row in roots])
    above: dict[int, list[tuple[str, str]]] = {}
    for oid, schema, name in ask(connection, _ABOVE, [row[0] for row in roots]):
        above.setdefault(oid, []).append((schema, name))
    everything = [row[0] for row in roots] + [row[2] for row in below]
    columns: dict[int, dict[str, Column]] = {}
    for oid, name, type_name, not_null, generated, position, deterministic in ask(
        connection, _COLUMNS, everything, everything
    ):
        columns.setdefault(oid, {})[name] = Column(
            type=type_name, not_null=not_null, generated=generated, position=position, deterministic=deterministic
        )
    indexes: dict[int, list[Index]] = {}
    for oid, name, keys, primary, identity, usable in ask(connection, _INDEXES, everything):
        index = Index(name=name, columns=tuple(keys), primary=primary, identity=identity, usable=usable)
        indexes.setdefault(oid, []).append(index)

    telling = {oid for (oid,) in ask(connection, _TELLING, everything, triggers.TRUNCATE_NAME, triggers.TRUNCATE_BODY)}
    senders = _senders(connection, [row[1:3] for row in roots] + [row[3:5] for row in below], version)

    def table(row: Sequence[Any], root: Sequence[str] = ("", "")) -> Table:
        oid, schema, name, kind, persistence, identity, file, named, *attached = row
        sent = (*senders.get((schema, name), ()), *senders.get((root[0], root[1]), ()))
        every = columns.get(oid, {})
        return Table(
            oid=oid,
            schema=schema,
            name=name,
            kind=kind,
            persistence=persistence,
            identity=identity,
            columns=every,
            indexes=tuple(indexes.get(oid, ())),
            senders=sent,
            full=frozenset(name for name in every if version >= 180000 or not every[name].generated),
            named=named,
            file=file,
            above=tuple(above.get(oid, ())),
            tells_truncate=oid in telling,
            attached="".join(attached),
            partitions=tuple(table(row[2:], (schema, name)) for row in below if row[0] == oid and row[1]),
            children=tuple(table(row[2:]) for row in below if row[0] == oid and not row[1]),
        )

    return {(root[1], root[2]): table(root) for root in roots}


def _senders(
    connection: Connection, names: Sequence[Sequence[str]], version: int
) -> dict[tuple[str, str], list[Sender]]:
    found: dict[tuple[str, str], list[Sender]] = {}
    if version >= 150000:  # before, a publication sent tables whole
        for schema, table, publication, columns, filtered in ask(
            connection, _SENDERS, [s for s, _ in names], [t for _, t in names]
        ):
            sender = Sender(publication=publication, columns=frozenset(columns), filtered=filtered)
            found.setdefault((schema, table), []).append(sender)
    return found


_PROCESS = "select pg_postmaster_start_time()::text, inet_server_addr()::text, inet_server_port()"
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
       coalesce((to_jsonb(s) ->> 'failover')::bool, false), coalesce((to_jsonb(s) ->> 'two_phase')::bool, false)
  from pg_replication_slots s where slot_name = %s"""
_TRIGGERS = """
select t.evtname::text, t.evtevent::text, p.prosrc
  from pg_event_trigger t join pg_proc p on p.oid = t.evtfoid
 where t.evtname = any(%s::text[]) and t.evtenabled in ('O', 'A') and t.evttags is null"""
_TELLING = """
select t.tgrelid::int8 from pg_trigger t join pg_proc p on p.oid = t.tgfoid
 where t.tgrelid = any(%s::oid[]) and t.tgname = %s and p.prosrc = %s and t.tgenabled in ('O', 'A')"""
_PUBLICATION = """
select oid::int8, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
       coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 's'
  from pg_publication p where pubname = %s"""
_PUBLISHED = """
select schemaname::text, tablename::text, attnames::text[], rowfilter from pg_publication_tables where pubname = %s"""
_PUBLISHED_14 = """
select schemaname::text, tablename::text, null::text[], null::text from pg_publication_tables where pubname = %s"""
_BARE = """
select t.schemaname::text, t.tablename::text from pg_publication_tables t
  join pg_namespace n on n.nspname = t.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename and c.relkind = 'r'
 where t.pubname = %s and (c.relreplident = 'n' or c.relreplident in ('d', 'i') and not exists (
         select from pg_index i where i.indrelid = c.oid
            and case c.relreplident when 'd' then i.indisprimary else i.indisreplident end))
 order by 1, 2"""
_SENDERS = """
select t.schemaname::text, t.tablename::text, t.pubname::text, t.attnames::text[], t.rowfilter is not null
  from pg_publication_tables t join pg_publication p on p.pubname = t.pubname and (p.pubupdate or p.pubdelete)
  join unnest(%s::text[], %s::text[]) as wanted (nspname, relname)
    on wanted.nspname = t.schemaname and wanted.relname = t.tablename
 order by t.pubname"""
# The row of a table's type is written anew when the table gets another name, schema or owner, and at no other time.
_CLASS = """
       c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relfilenode::int8, coalesce((select t.xmin::text from pg_type t where t.oid = c.reltype), '')"""
_TABLES = f"""
select {_CLASS} from unnest(%s::text[], %s::text[]) as wanted (nspname, relname)
  join pg_namespace n on n.nspname = wanted.nspname
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.relname
 where c.relkind not in ('i', 'I', 'S', 'c', 't')"""
_BELOW = f"""
with recursive tree (root, oid, partitioned, attached) as (
  select c.oid, c.oid, c.relkind = 'p', '' from pg_class c where c.oid = any(%s::oid[])
  union all
  select tree.root, i.inhrelid, tree.partitioned, tree.attached || ' ' || i.xmin::text
    from tree join pg_inherits i on i.inhparent = tree.oid)
select tree.root::int8, tree.partitioned, {_CLASS}, tree.attached from tree
  join pg_class c on c.oid = tree.oid and c.oid <> tree.root and c.relkind <> 'p'
  join pg_namespace n on n.oid = c.relnamespace
 order by n.nspname, c.relname"""  # what pg_partition_tree() says, without its locks
_ABOVE = """
with recursive tree (leaf, oid) as (
  select i.inhrelid, i.inhparent from pg_inherits i join pg_class c on c.oid = i.inhrelid
   where i.inhrelid = any(%s::oid[]) and c.relispartition
  union all
  select tree.leaf, i.inhparent from tree join pg_inherits i on i.inhrelid = tree.oid)
select tree.leaf::int8, n.nspname::text, c.relname::text from tree
  join pg_class c on c.oid = tree.oid join pg_namespace n on n.oid = c.relnamespace"""
_COLUMNS = """
with recursive base (type, oid) as (
  select distinct a.atttypid, a.atttypid from pg_attribute a where a.attrelid = any(%s::oid[])
  union all
  select base.type, t.typbasetype from base join pg_type t on t.oid = base.oid and t.typtype = 'd')
select a.attrelid::int8, a.attname::text, case when b.typtype = 'e' then 'enum' else b.typname::text end,
       a.attnotnull or t.typnotnull, a.attgenerated::text, a.attnum::int, coalesce(l.collisdeterministic, true)
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
