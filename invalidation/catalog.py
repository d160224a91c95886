"""What the source's system catalogues say about the tables of the rules: read by `survey`, judged by `lint`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column; `type` is the base type's name in pg_type, "enum" for any enum."""

    type: str
    not_null: bool
    generated: str  # "" no, "s" stored, "v" virtual
    position: int  # pg_attribute.attnum, which a column keeps whatever it is called
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
class Sender:
    """A publication that sends updates or deletes of a table."""

    publication: str
    columns: frozenset[str]
    filtered: bool  # by row


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
    senders: tuple[Sender, ...] = ()
    full: frozenset[str]  # the columns of an identity FULL
    named: str  # the transaction that gave it its name, schema or owner
    file: int  # its relfilenode: another one when it was truncated or rewritten
    tells_truncate: bool = False  # by the trigger of `setup`
    above: tuple[tuple[str, str], ...] = ()  # the partitioned tables that it is a part of
    attached: str = ""  # of a leaf: the transactions that attached it and what stands between it and its root
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
            return self.full
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
    bare: tuple[tuple[str, str], ...]  # those of them without an identity, whose updates fail


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A replication slot."""

    kind: str  # "logical" or "physical"
    plugin: str | None
    database: str | None
    wal_status: str | None  # "lost" = its log is gone
    active: bool
    failover: bool  # copied to standbys that may be promoted
    two_phase: bool  # sends transactions when they are prepared


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

    def sent_as(self, table: Table) -> tuple[str, str] | None:
        """Return the table under whose name rows of a partition are sent, or will be once `setup` has run.

        None = its own.
        """
        sent = {*self.tables, *(() if self.publication is None else self.publication.tables)}
        return next((name for name in table.above if name in sent), None)
