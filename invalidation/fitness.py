"""Whether the servers, our role on them and the slot can carry a stream, whatever the rules are."""

from collections.abc import Iterator

from leasecache.invalidation.catalog import Catalog, Link, Reader
from leasecache.invalidation.ddl import literal, quoted, slot_ddl
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.triggers import NAMES, triggers_ddl


def judge(catalog: Catalog) -> Iterator[Finding]:
    """Return what is wrong with the source, our role on it, its slot and the readers."""
    yield from _server(catalog)
    yield from _standby(catalog)
    yield from _role(catalog)
    yield from _slot(catalog)
    yield from _triggers(catalog)
    yield from _link("the source", catalog.link)
    for reader in catalog.readers:
        yield from _reader(catalog, reader)


def _server(catalog: Catalog) -> Iterator[Finding]:
    if catalog.wal_level != "logical":
        yield Finding(
            code="wal-level",
            consequence=f"wal_level is {catalog.wal_level}, so the server cannot decode changes",
            remedy=("alter system set wal_level = 'logical'", "-- then restart the server"),
        )
    if catalog.slot is None and catalog.free_slots <= 0:
        yield Finding(
            code="no-free-slot",
            consequence="all max_replication_slots are taken, so the daemon's slot cannot be made",
            remedy=(
                "select slot_name, active from pg_replication_slots",
                "-- drop one, or raise max_replication_slots",
            ),
        )
    if catalog.free_senders <= 0 and not (catalog.slot and catalog.slot.active):
        yield Finding(
            code="no-free-sender",
            consequence="all max_wal_senders are taken, so the daemon cannot stream",
            remedy=("-- raise max_wal_senders and restart the server",),
            fatal=False,
        )
    if catalog.wal_kept < 0:
        yield Finding(
            code="wal-unlimited",
            consequence="max_slot_wal_keep_size is not set, so while the daemon is down its slot may fill the disk "
            "with log",
            remedy=("alter system set max_slot_wal_keep_size = '50GB'", "select pg_reload_conf()"),
            fatal=False,
            note=True,
        )


def _standby(catalog: Catalog) -> Iterator[Finding]:
    if not catalog.in_recovery:
        return
    if catalog.version < 160000:
        yield Finding(
            code="standby-version",
            consequence="a standby decodes from PostgreSQL 16 on, this one is older",
            remedy=("-- name the primary in source.dsn, and this node in source.readers",),
        )
    if not catalog.hot_standby_feedback:
        yield Finding(
            code="hot-standby-feedback",
            consequence="hot_standby_feedback is off, so a vacuum on the primary can invalidate the standby's slot",
            remedy=("alter system set hot_standby_feedback = on", "select pg_reload_conf()"),
            fatal=False,
        )
    if not catalog.physical_slot:
        yield Finding(
            code="physical-slot",
            consequence="the standby has no slot on its primary, so while it is disconnected a vacuum there "
            "can invalidate the daemon's slot",
            remedy=(
                "select pg_create_physical_replication_slot('standby', true)  -- on the primary",
                "alter system set primary_slot_name = 'standby'",
                "select pg_reload_conf()",
            ),
            fatal=False,
        )


def _role(catalog: Catalog) -> Iterator[Finding]:
    role = catalog.role
    if not role.replication:
        yield Finding(
            code="role-replication",
            consequence=f"role {role.name!r} may not replicate, so the daemon cannot stream",
            remedy=(f"alter role {quoted(role.name)} replication",),
        )
    if not role.monitor and (catalog.in_recovery or any(reader.in_recovery for reader in catalog.readers)):
        yield Finding(
            code="role-monitor",
            consequence=f"role {role.name!r} may not see when a standby has crashed and gone back in time, "
            "so what was read then would stay cached",
            remedy=(f"grant pg_monitor to {quoted(role.name)}",),
        )


def _slot(catalog: Catalog) -> Iterator[Finding]:
    name, slot = catalog.slot_name, catalog.slot
    drop = f"select pg_drop_replication_slot({literal(name)})"
    if slot is None:
        consequence = f"there is no slot {name!r}, so changes are not kept for the daemon"
        create = slot_ddl(name, version=catalog.version, in_recovery=catalog.in_recovery)
        yield Finding(code="slot-missing", consequence=consequence, remedy=(create,))
    elif slot.kind != "logical" or slot.plugin != "pgoutput":
        what = slot.plugin or slot.kind
        yield Finding(code="slot-plugin", consequence=f"slot {name!r} is of {what}, not of pgoutput", remedy=(drop,))
    elif slot.database != catalog.database:
        consequence = f"slot {name!r} belongs to database {slot.database!r}, not to {catalog.database!r}"
        yield Finding(code="slot-database", consequence=consequence, remedy=("-- choose another source.slot",))
    elif slot.wal_status == "lost":
        create = slot_ddl(name, version=catalog.version, in_recovery=catalog.in_recovery)
        yield Finding(
            code="slot-lost",
            consequence=f"slot {name!r} has lost changes, so a daemon that is started makes it anew and gives up all "
            "guarded values",
            remedy=(drop, create, "-- clear caches that have no guard"),
            fatal=False,
        )
    elif slot.two_phase:
        consequence = f"slot {name!r} sends transactions when they are prepared, which the daemon does not understand"
        create = slot_ddl(name, version=catalog.version, in_recovery=catalog.in_recovery)
        yield Finding(code="slot-two-phase", consequence=consequence, remedy=(drop, create, "-- clear the cache"))
    elif catalog.version >= 170000 and not catalog.in_recovery and not slot.failover:
        yield Finding(
            code="slot-failover",
            consequence=f"slot {name!r} is not copied to standbys, so a failover of the primary empties the caches",
            remedy=(
                f"-- over a replication connection, while the daemon is stopped: "
                f"ALTER_REPLICATION_SLOT {quoted(name)} (FAILOVER true)",
                "-- and on the standby: sync_replication_slots = on",
            ),
            fatal=False,
        )


def _triggers(catalog: Catalog) -> Iterator[Finding]:
    if catalog.drift_triggers != NAMES.keys():
        yield Finding(
            code="drift-triggers",
            consequence="the triggers of `leasecache setup` are missing, so a change of publications or tables is "
            "found by the look every drift.every s only, and changes of rows until then may be missed",
            remedy=tuple(triggers_ddl(catalog.drift_triggers)),
            fatal=False,
            note=True,  # on a managed server nobody may be allowed to create them
        )


def _link(what: str, link: Link) -> Iterator[Finding]:
    if link.remote and not link.encrypted:
        yield Finding(
            code="not-encrypted",
            consequence=f"the connection to {what} is not encrypted, so the network can read and change what is sent",
            remedy=("-- add sslmode=verify-full to the dsn",),
            fatal=False,
        )
    elif link.remote and not link.verified:
        yield Finding(
            code="not-verified",
            consequence=f"the certificate of {what} is not checked, so another could answer in its place: add "
            "sslmode=verify-full",
            remedy=("-- use sslmode=verify-full and sslrootcert in the dsn",),
            fatal=False,
            note=True,
        )


def _reader(catalog: Catalog, reader: Reader) -> Iterator[Finding]:
    what = f"reader {reader.where}"
    if reader.fault is not None:
        yield Finding(
            code="reader-unreachable",
            consequence=f"{what}: {reader.fault}; until it answers nothing is invalidated",
            remedy=("-- start it, or take it out of source.readers",),
            fatal=False,
        )
        return
    if reader.system != catalog.system:
        yield Finding(
            code="reader-foreign",
            consequence=f"{what} is no copy of the source's database cluster, so it never shows its changes",
            remedy=("-- correct source.readers",),
        )
    if reader.link is not None:
        yield from _link(what, reader.link)
