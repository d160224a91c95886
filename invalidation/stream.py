"""The replication stream without its socket: frames in, complete transactions out, acknowledgements as bytes.

What may arrive when is the table `_ALLOWED`: a transaction is Begin, any number of changes, Commit; relations, types
and messages may come anywhere. Anything else is a SourceError, after which the stream is of no more use: reconnect, and
the server repeats whatever was not acknowledged.
https://www.postgresql.org/docs/current/protocol-replication.html
"""

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from leasecache.errors import SourceError
from leasecache.invalidation.pgoutput import (
    AnyMessage,
    Begin,
    Change,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)
from leasecache.invalidation.wire import Reader
from leasecache.messages import DDL_PREFIX, PREFIX

MOST_KEYS = 100_000  # that one transaction may touch before all keys go instead
POSTGRES_EPOCH = 946_684_800  # 2000-01-01 UTC in Unix seconds

_TAG_MOST = 100  # bytes of a command tag
_STATUS = struct.Struct("!cQQQqB")


class Keepalive(NamedTuple):
    """The server is alive; everything up to `wal_end` that concerns this slot has been sent."""

    wal_end: int
    reply_requested: bool


class Data(NamedTuple):
    """A frame that carries one pgoutput message."""

    wal_end: int
    payload: bytes


class Loss(NamedTuple):
    """A change whose keys cannot be known from the stream."""

    reason: str  # "truncate" | "toast" | "identity" | "column" | "value" | "keys" | "namespace" | "messages"
    table: str  # "*" = several
    function: str  # whose keys stay stale; "*" = all of the table


_TOO_MANY = Loss("keys", "*", "*")


class Garbage(NamedTuple):
    """A commit message of our prefix that could not be understood, at least in part."""

    reason: str


class Drift(NamedTuple):
    """A statement changed the schema or the publication in the transaction that is arriving."""

    tag: str  # "ALTER PUBLICATION"


@dataclass(slots=True)
class Touched:
    """What the open transaction has touched so far."""

    keys: dict[bytes, float] = field(default_factory=dict)  # key → s it may be served stale, the least of its rules
    explicit: dict[bytes, float] = field(default_factory=dict)  # the same of keys that commit messages name
    everything: str | None = None  # why keys are missing, so that all of the namespace must go: the reason of a loss
    losses: Counter[Loss] = field(default_factory=Counter)
    table_rows: Counter[str] = field(default_factory=Counter)  # rows of tables that have rules
    rule_keys: Counter[tuple[str, str]] = field(default_factory=Counter)  # (function, table) → keys rendered
    rows: int = 0
    messages: int = 0

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self.keys) + len(self.explicit.keys() - self.keys.keys() if self.explicit else ())

    def __bool__(self) -> bool:
        """Whether anything has to go."""
        return bool(self.keys or self.explicit or self.everything)

    def touch(self, key: bytes, stale_for: float) -> None:
        """Add a key of a row; of several wishes for one key the strictest holds."""
        _add(self.keys, key, stale_for)

    def name(self, key: bytes, stale_for: float) -> None:
        """Add a key that a commit message names."""
        _add(self.explicit, key, stale_for)

    def lose(self, reason: str, table: str = "*", function: str = "*") -> None:
        """Note that some key is missing."""
        self.losses[Loss(reason, table, function)] += 1
        self.everything = self.everything or reason

    def shed(self, most: int) -> None:
        """Drop keys of which there are more than `most`: for those of rows a new generation must do."""
        if len(self.keys) > most:
            if _TOO_MANY not in self.losses:
                self.lose(_TOO_MANY.reason)
            self.keys = {}
        if len(self.explicit) > most:
            self.lose("messages")
            self.explicit = {}

    def settle(self) -> None:
        """Drop at the end what has come since keys were dropped."""
        if _TOO_MANY in self.losses:
            self.keys = {}


def _add(keys: dict[bytes, float], key: bytes, stale_for: float) -> None:
    known = keys.get(key)
    if known is None or stale_for < known:
        keys[key] = stale_for


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """A committed transaction: what it touched, and where it stands in the log."""

    xid: int  # 32 bits
    end_lsn: int
    committed_at: float  # Unix s, by the server's clock
    touched: Touched


Event: TypeAlias = Transaction | Keepalive | Garbage | Drift


class Rows(Protocol):
    """Where relations and changes go: the router."""

    def describe(self, relation: Relation) -> None:
        """Remember what the tuples of a relation look like."""
        ...

    def route(self, change: Change, touched: Touched) -> None:
        """Add what `change` touches."""
        ...

    def hear(self, content: bytes, touched: Touched) -> str | None:
        """Add what a commit message names; return what of it could not be understood."""
        ...


def parse_frame(frame: bytes) -> Data | Keepalive:
    """Read one CopyData frame from the server. Raises SourceError on anything but a whole known frame."""
    reader = Reader(frame, "replication frame")
    kind = reader.take(1)
    if kind == b"w":
        reader.take(8)  # start of the message in the log
        wal_end = reader.uint(8)
        reader.take(8)  # the server's clock
        return Data(wal_end, reader.rest())
    if kind == b"k":
        wal_end = reader.uint(8)
        reader.take(8)
        reply_requested = reader.uint(1) != 0
        reader.finish()
        return Keepalive(wal_end, reply_requested)
    raise reader.error(f"is of unknown kind {kind!r}")


def status_update(position: int, now: float, *, reply_requested: bool = False) -> bytes:
    """Return the frame that acknowledges everything before `position`; `now` is in Unix seconds."""
    return _STATUS.pack(b"r", position, position, position, unix_to_micros(now), reply_requested)


def unix_to_micros(seconds: float) -> int:
    """Return Unix seconds as Postgres microseconds since 2000."""
    return int((seconds - POSTGRES_EPOCH) * 1e6)


class Stream:
    """Assemble transactions from frames."""

    def __init__(self, rows: Rows, most_keys: int = MOST_KEYS) -> None:
        """Keep at most `most_keys` keys of a transaction, however many rows it has."""
        self._rows = rows
        self._most_keys = most_keys
        self._begin: Begin | None = None
        self.touched = Touched()  # by the open transaction
        self.received = 0  # highest position the server has reported

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun and its Commit has not arrived."""
        return self._begin is not None

    def receive(self, frame: bytes) -> Event | None:
        """Take one frame; return a keepalive, the transaction it completes, or what a message means."""
        parsed = parse_frame(frame)
        self.received = max(self.received, parsed.wal_end)
        if isinstance(parsed, Keepalive):
            return parsed
        return self._take(decode(parsed.payload))

    def _take(self, message: AnyMessage) -> Event | None:
        if type(message) not in _ALLOWED[self.in_transaction]:
            where = "inside" if self.in_transaction else "outside"
            raise SourceError(f"{type(message).__name__} arrived {where} a transaction")
        if isinstance(message, (Insert, Update, Delete, Truncate)):
            self.touched.rows += 1
            self._rows.route(message, self.touched)
            self.touched.shed(self._most_keys)
        elif isinstance(message, Begin):
            self._begin, self.touched = message, Touched()
        elif isinstance(message, Commit):
            return self._complete(message)
        elif isinstance(message, Relation):
            self._rows.describe(message)
        elif isinstance(message, Message):
            return self._hear(message)
        return None

    def _complete(self, commit: Commit) -> Transaction:
        begin = self._begin
        if begin is None or begin.final_lsn != commit.commit_lsn:
            raise SourceError("Commit does not belong to the transaction that began")
        self._begin = None
        self.received = max(self.received, commit.end_lsn)
        self.touched.settle()
        return Transaction(
            xid=begin.xid,
            end_lsn=commit.end_lsn,
            committed_at=commit.committed_at / 1e6 + POSTGRES_EPOCH,
            touched=self.touched,
        )

    def _hear(self, message: Message) -> Garbage | Drift | None:
        if message.prefix not in (PREFIX, DDL_PREFIX):
            return None
        if not (message.transactional and self.in_transaction):
            return Garbage("sent without regard to its transaction")  # which may be open still, or rolled back
        if message.prefix == DDL_PREFIX:
            return Drift(message.content[:_TAG_MOST].decode(errors="replace"))
        self.touched.messages += 1
        fault = self._rows.hear(message.content, self.touched)
        self.touched.shed(self._most_keys)
        return None if fault is None else Garbage(fault)


_ANYWHERE = frozenset({Relation, Type, Message})
_ALLOWED: dict[bool, frozenset[type[AnyMessage]]] = {
    False: _ANYWHERE | {Begin},
    True: _ANYWHERE | {Commit, Insert, Update, Delete, Truncate, Origin},
}
