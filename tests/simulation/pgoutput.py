"""Replication frames as a walsender makes them: the opposite of the decoder, for what the simulator writes."""

import struct
from collections.abc import Iterable, Sequence

Row = Sequence[str | None]

MICROS = 1_000_000
SINCE_2000 = 946_684_800


def xlog_data(position: int, payload: bytes) -> bytes:
    """Return the frame that carries one message."""
    return b"w" + struct.pack("!QQq", position, position, 0) + payload


def keepalive(wal_end: int, reply_requested: bool) -> bytes:
    """Return a keepalive."""
    return b"k" + struct.pack("!QqB", wal_end, 0, reply_requested)


def begin(commit_lsn: int, committed_at: float, xid: int) -> bytes:
    """Return Begin; `committed_at` in Unix s."""
    return b"B" + struct.pack("!QqI", commit_lsn, _micros(committed_at), xid % 2**32)


def commit(commit_lsn: int, end_lsn: int, committed_at: float) -> bytes:
    """Return Commit."""
    return b"C" + struct.pack("!BQQq", 0, commit_lsn, end_lsn, _micros(committed_at))


def relation(relid: int, table: str, identity: str, columns: Iterable[tuple[str, bool]]) -> bytes:
    """Return Relation of a table of integers; a column is its name and whether it is of the identity."""
    columns = list(columns)
    head = b"R" + struct.pack("!I", relid) + b"public\0" + table.encode() + b"\0" + identity.encode()
    parts = [struct.pack("!B", key) + name.encode() + b"\0" + struct.pack("!Ii", 23, -1) for name, key in columns]
    return head + struct.pack("!h", len(columns)) + b"".join(parts)


def insert(relid: int, new: Row) -> bytes:
    """Return Insert."""
    return b"I" + struct.pack("!I", relid) + b"N" + _tuple(new)


def update(relid: int, new: Row, old: Row | None = None, kind: str = "K") -> bytes:
    """Return Update, with the old tuple when the identity has changed."""
    before = b"" if old is None else kind.encode() + _tuple(old)
    return b"U" + struct.pack("!I", relid) + before + b"N" + _tuple(new)


def truncate(*relids: int) -> bytes:
    """Return Truncate."""
    return b"T" + struct.pack("!IB", len(relids), 0) + struct.pack(f"!{len(relids)}I", *relids)


def message(lsn: int, prefix: str, content: bytes) -> bytes:
    """Return a transactional message."""
    return b"M" + struct.pack("!BQ", 1, lsn) + prefix.encode() + b"\0" + struct.pack("!I", len(content)) + content


def flushed(frame: bytes) -> tuple[int, bool]:
    """Return what a status acknowledges, and whether it asks for a reply."""
    kind, _, position, _, _, reply = struct.unpack("!cQQQqB", frame)
    assert kind == b"r"
    return position, bool(reply)


def _tuple(row: Row) -> bytes:
    fields = [b"n" if v is None else b"t" + struct.pack("!I", len(v)) + v.encode() for v in row]
    return struct.pack("!h", len(fields)) + b"".join(fields)


def _micros(seconds: float) -> int:
    return int((seconds - SINCE_2000) * MICROS)
