"""Logical replication messages of the pgoutput plugin, protocol version 1, text tuples.

One type per message, one decode function each, one table that chooses. Field comments quote the protocol:
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from collections.abc import Callable
from enum import Enum
from typing import Final, Literal, NamedTuple, TypeAlias

from leasecache.errors import SourceError
from leasecache.invalidation.wire import Reader


class Unchanged(Enum):
    """The type of UNCHANGED: an out-of-line (TOAST) value that the update did not touch and the server did not send."""

    UNCHANGED = "u"


UNCHANGED: Final = Unchanged.UNCHANGED
Value: TypeAlias = bytes | Literal[Unchanged.UNCHANGED] | None
Tuple: TypeAlias = tuple[Value, ...]


class Begin(NamedTuple):
    """A transaction begins; its messages follow without interruption."""

    final_lsn: int  # LSN of the commit record
    committed_at: int  # µs since 2000-01-01 UTC
    xid: int  # 32 bits, without the epoch


class Commit(NamedTuple):
    """The transaction that began last is complete."""

    commit_lsn: int  # equals Begin.final_lsn
    end_lsn: int  # the position to acknowledge
    committed_at: int  # µs since 2000-01-01 UTC


class Column(NamedTuple):
    """A column of a relation, in the order of its tuples."""

    name: str
    key: bool  # part of the replica identity; with FULL every column is
    type_oid: int


class Relation(NamedTuple):
    """What the tuples of `relid` look like from here on."""

    relid: int
    schema: str
    table: str
    identity: str  # "d" default, "n" nothing, "f" full, "i" index
    columns: tuple[Column, ...]


class Insert(NamedTuple):
    """A row was inserted."""

    relid: int
    new: Tuple


class Update(NamedTuple):
    """A row was updated. `old` is there when the identity changed ("K") or is FULL ("O")."""

    relid: int
    old_kind: str | None  # "K": only identity columns are meaningful, the others read null; "O": the whole row
    old: Tuple | None
    new: Tuple


class Delete(NamedTuple):
    """A row was deleted."""

    relid: int
    old_kind: str  # as in Update
    old: Tuple


class Truncate(NamedTuple):
    """Tables were truncated together."""

    relids: tuple[int, ...]
    options: int  # 1 CASCADE, 2 RESTART IDENTITY


class Message(NamedTuple):
    """What `pg_logical_emit_message` sent."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class Origin(NamedTuple):
    """The transaction came from another server."""

    lsn: int
    name: str


class Type(NamedTuple):
    """The name of a type that is not built in."""

    oid: int
    schema: str
    name: str


Change: TypeAlias = Insert | Update | Delete | Truncate
AnyMessage: TypeAlias = Begin | Commit | Relation | Change | Message | Origin | Type


def decode(payload: bytes) -> AnyMessage:
    """Decode one message, the payload of an XLogData frame. Raises SourceError unless it is a whole known one."""
    decoder = _DECODERS.get(payload[:1])
    if decoder is None:
        raise SourceError(f"pgoutput message of unknown type {payload[:1]!r}")
    reader = Reader(payload, f"pgoutput message {payload[:1].decode('ascii')!r}")
    reader.take(1)
    message = decoder(reader)
    reader.finish()
    return message


def _begin(reader: Reader) -> Begin:
    return Begin(final_lsn=reader.uint(8), committed_at=reader.sint(8), xid=reader.uint(4))


def _commit(reader: Reader) -> Commit:
    reader.take(1)  # flags, unused
    return Commit(commit_lsn=reader.uint(8), end_lsn=reader.uint(8), committed_at=reader.sint(8))


def _relation(reader: Reader) -> Relation:
    return Relation(
        relid=reader.uint(4),
        schema=reader.string() or "pg_catalog",  # the protocol's abbreviation
        table=reader.string(),
        identity=_letter(reader, "dnfi"),
        columns=tuple(_column(reader) for _ in range(reader.count(2))),
    )


def _column(reader: Reader) -> Column:
    key = bool(reader.uint(1) & 1)
    column = Column(name=reader.string(), key=key, type_oid=reader.uint(4))
    reader.take(4)  # type modifier
    return column


def _insert(reader: Reader) -> Insert:
    relid = reader.uint(4)
    _letter(reader, "N")
    return Insert(relid, _tuple(reader))


def _update(reader: Reader) -> Update:
    relid = reader.uint(4)
    kind = _letter(reader, "KON")
    if kind == "N":
        return Update(relid, None, None, _tuple(reader))
    old = _tuple(reader)
    _letter(reader, "N")
    return Update(relid, kind, old, _tuple(reader))


def _delete(reader: Reader) -> Delete:
    relid = reader.uint(4)
    kind = _letter(reader, "KO")
    return Delete(relid, kind, _tuple(reader))


def _truncate(reader: Reader) -> Truncate:
    count = reader.count(4)
    options = reader.uint(1)
    return Truncate(relids=tuple(reader.uint(4) for _ in range(count)), options=options)


def _message(reader: Reader) -> Message:
    transactional = bool(reader.uint(1) & 1)
    lsn = reader.uint(8)
    prefix = reader.string()
    return Message(transactional, lsn, prefix, reader.take(reader.count(4)))


def _origin(reader: Reader) -> Origin:
    return Origin(lsn=reader.uint(8), name=reader.string())


def _type(reader: Reader) -> Type:
    return Type(oid=reader.uint(4), schema=reader.string(), name=reader.string())


def _tuple(reader: Reader) -> Tuple:
    return tuple(_value(reader) for _ in range(reader.count(2)))


def _value(reader: Reader) -> Value:
    kind = reader.take(1)
    if kind == b"t":
        return reader.take(reader.count(4))
    if kind == b"n":
        return None
    if kind == b"u":
        return UNCHANGED
    raise reader.error(f"has a column of kind {kind!r}, not text")  # binary ('b') is never asked for


def _letter(reader: Reader, allowed: str) -> str:
    letter = chr(reader.uint(1))
    if letter not in allowed:
        raise reader.error(f"has {letter!r} where one of {allowed!r} belongs")
    return letter


_DECODERS: dict[bytes, Callable[[Reader], AnyMessage]] = {
    b"B": _begin,
    b"C": _commit,
    b"R": _relation,
    b"I": _insert,
    b"U": _update,
    b"D": _delete,
    b"T": _truncate,
    b"M": _message,
    b"O": _origin,
    b"Y": _type,
}
