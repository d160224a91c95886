"""What database nodes answer to the daemon's questions, by what a question mentions."""

from collections.abc import Callable
from typing import Any

from leasecache.errors import SourceError
from leasecache.invalidation.lsn import format_lsn, parse_lsn
from tests.simulation.database import Node, Standby

Rows = list[tuple[Any, ...]]
Answer = Callable[
    [Node, str, int], Rows
]  # the node, the first parameter or literal, the pid that serves the connection


class UnknownQuestionError(BaseException):
    """The daemon asks what the simulated database cannot answer; no daemon gets to see this error."""


def answer(node: Node, sql: str, parameters: Any, backend: int) -> Rows:
    """Return what a node answers. Raises UnknownQuestionError: then `ANSWERS` needs one more."""
    words = " ".join(sql.split())
    literal = words.split("'")[1] if "'" in words else ""
    for mentioned, found in ANSWERS:
        if mentioned in words:
            return found(node, parameters[0] if parameters else literal, backend)
    raise UnknownQuestionError(f"the simulated database has no answer to {words!r}")


def _gate(node: Node, _: str, backend: int) -> Rows:
    replayed = format_lsn(node.replayed) if isinstance(node, Standby) else None
    return [(node.in_recovery, node.snapshot(), replayed, backend)]


def _identity(node: Node, _: str, backend: int) -> Rows:
    return [(node.database.system, _started(node), f"{node.incarnation} started", node.in_recovery, backend, "us")]


def _started(node: Node) -> str:
    return f"{node.name} {node.started}"


def _arrived(node: Node, position: str, _: int) -> Rows:
    return [(node.in_recovery, isinstance(node, Standby) and node.replayed >= parse_lsn(position))]


def _slot(node: Node, name: str, _: int) -> Rows:
    slot = node.slots.get(name)
    if slot is None:
        return []
    return [("lost" if slot.lost else "reserved", format_lsn(slot.confirmed), _pid(slot.active))]


def _holder(node: Node, name: str, _: int) -> Rows:
    return [(_pid(slot.active),) for slot in [node.slots.get(name)] if slot is not None]


def _pid(active: Any) -> int | None:
    return None if active is None else active.pid


def _drop(node: Node, name: str, _: int) -> Rows:
    slot = node.slots.get(name)
    if slot is None or slot.active is not None:
        raise SourceError(f"slot {name!r} is in use or gone")
    del node.slots[name]
    return [("",)]


def _create(node: Node, name: str, _: int) -> Rows:
    if name in node.slots:
        raise SourceError(f"slot {name!r} already exists")
    return [(f"({name},{format_lsn(node.create_slot(name))})",)]


def _later(node: Node, _: str, __: int) -> Rows:
    xid = node.database.begin()
    node.database.end(xid)
    return [(xid,)]


ANSWERS: list[tuple[str, Answer]] = [
    ("IDENTIFY_SYSTEM", lambda node, _, __: [(node.database.system, 1, format_lsn(node.sendable), "app")]),
    ("select pg_is_in_recovery(), pg_current_snapshot(), pg_last_wal_replay_lsn(), pg_backend_pid()", _gate),
    ("backend_type = 'checkpointer'", _identity),
    ("select pg_postmaster_start_time()", lambda node, _, __: [(_started(node),)]),
    ("current_setting('wal_sender_timeout')", lambda node, _, __: [(20,)]),
    ("select wal_status, confirmed_flush_lsn, active_pid from pg_replication_slots", _slot),
    ("select wal_status from pg_replication_slots", lambda *asked: [row[:1] for row in _slot(*asked)]),
    ("select active_pid from pg_replication_slots", _holder),
    ("pg_drop_replication_slot", _drop),
    ("pg_create_logical_replication_slot", _create),
    ("select pg_is_in_recovery(), pg_last_wal_replay_lsn() >= %s", _arrived),
    ("from pg_snapshot_xip(pg_current_snapshot())", lambda node, _, __: [(xid,) for xid in node.database.running]),
    ("select pg_current_xact_id()", _later),
    ("wait_event = 'SyncRep'", lambda node, _, __: [(xid,) for xid in node.database.waiting]),
    ("server_version_num')::int, pg_is_in_recovery()", lambda node, _, __: [(180000, node.in_recovery)]),
    ("select pg_is_in_recovery()", lambda node, _, __: [(node.in_recovery,)]),
]
