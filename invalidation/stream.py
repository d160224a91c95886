"""The replication stream without its socket: frames in, complete transactions out, acknowledgements as bytes.

What may arrive when is the table `_ALLOWED`: a transaction is Begin, any number of changes, Commit; relations, types
and messages may come anywhere. Anything else is a SourceError, after which the stream is of no more use: reconnect, and
the server repeats whatever was not acknowledged.
https://www.postgresql.org/docs/current/protocol-replication.html
"""

import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
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
from leasecache.invalidation.walker import Walker, merge
from leasecache.invalidation.wire import Reader
from leasecache.messages import DDL_PREFIX, PREFIX

MOST_KEYS = 100_000  # that one transaction may touch before all keys go instead
POSTGRES_EPOCH = 946_684_800  # 2000-01-01 UTC in Unix seconds

_TAG_MOST = 200  # bytes of a command tag, and the name of a table
_KEEPALIVE = struct.Struct("!xQ8xB")  # after "k"; between the two numbers is the server's clock
_STATUS = struct.Struct("!cQQQqB")


class Keepalive(NamedTuple):
    """The server is alive; everything up to `wal_end` that concerns this slot has been sent."""

    wal_end: int
    reply_requested: bool
    within: bool = False  # a transaction, about which `wal_end` says nothing


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
    losses: defaultdict[Loss, int] = field(default_factory=partial(defaultdict, int))
    table_rows: defaultdict[str, int] = field(default_factory=partial(defaultdict, int))  # of tables that have rules
    rule_keys: defaultdict[tuple[str, str], int] = field(default_factory=partial(defaultdict, int))  # (function, table)
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

    @property
    def plain(self) -> bool:
        """Whether there is nothing yet but what a walk has added, if that much."""
        return not (self.rows or self.messages or self.explicit or self.everything or self.losses)

    def merge(self, other: "Touched") -> None:
        """Add what another transaction has touched."""
        merge(self.keys, other.keys)
        merge(self.explicit, other.explicit)
        self.everything = self.everything or other.everything
        for loss, count in other.losses.items():
            self.losses[loss] += count
        for table, count in other.table_rows.items():
            self.table_rows[table] += count
        for rule, count in other.rule_keys.items():
            self.rule_keys[rule] += count
        self.rows += other.rows
        self.messages += other.messages

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
    """A committed transaction: what it touched, and where it stands in the log. Or several that came in at once."""

    xids: tuple[int, ...]  # 32 bits each, in the order of their commits
    end_lsn: int  # of the last one
    committed_at: float  # Unix s, by the server's clock, of the first one
    touched: Touched


@dataclass(slots=True)
class Run:
    """Where the stream stands: the transaction that is open, and those that are complete and not handed over."""

    received: int = 0  # highest position the server has reported
    reached: int = 0  # that of a keepalive behind whatever is complete, and not handed over; 0 = none
    begun: bool = False
    xid: int = 0  # of the open transaction
    final_lsn: int = 0  # where it will have committed
    open: Touched = field(default_factory=Touched)
    xids: list[int] = field(default_factory=list)  # of the complete ones
    end_lsn: int = 0  # of the last of them
    committed_at: int = 0  # of the first of them, µs since 2000-01-01 UTC
    complete: Touched = field(default_factory=Touched)

    def begin(self, begin: Begin) -> None:
        """Open a transaction."""
        self.begun, self.xid, self.final_lsn, self.open = True, begin.xid, begin.final_lsn, Touched()

    def commit(self, commit: Commit) -> None:
        """Complete the open transaction. Raises SourceError when it is another one."""
        if not self.begun or self.final_lsn != commit.commit_lsn:
            raise SourceError("Commit does not belong to the transaction that began")
        self.begun = False
        self.reached = 0  # the commit is behind it
        self.received = max(self.received, commit.end_lsn)
        self.open.settle()
        if not self.xids:
            self.committed_at = commit.committed_at
        self.xids.append(self.xid)
        self.end_lsn = commit.end_lsn
        self.complete.merge(self.open)
        self.open = Touched()

    def take(self) -> Transaction | None:
        """Hand over what is complete."""
        if not self.xids:
            return None
        committed_at = self.committed_at / 1e6 + POSTGRES_EPOCH
        xids, touched = tuple(self.xids), self.complete
        self.xids, self.complete = [], Touched()
        return Transaction(xids=xids, end_lsn=self.end_lsn, committed_at=committed_at, touched=touched)


Event: TypeAlias = Transaction | Keepalive | Garbage | Drift


class Rows(Protocol):
    """Where relations and changes go: the router."""

    walker: Walker

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
    if len(frame) == _KEEPALIVE.size and frame[:1] == b"k":
        wal_end, reply = _KEEPALIVE.unpack(frame)
        return Keepalive(wal_end, reply != 0)
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


def sent_at(frame: bytes) -> float:
    """Return when (Unix s) the server has sent a frame, by its own clock."""
    at = 17 if frame[:1] == b"w" else 9
    return int.from_bytes(frame[at : at + 8], "big", signed=True) / 1e6 + POSTGRES_EPOCH


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
        self._run = Run()

    @property
    def received(self) -> int:
        """The highest position that the server has reported."""
        return self._run.received

    @property
    def touched(self) -> Touched:
        """What the open transaction has touched so far."""
        return self._run.open

    def feed(self, frames: Sequence[bytes]) -> list[Event]:
        """Take frames; return what they mean, with transactions that follow one another as one.

        Of keepalives between them, which say no more than the next commit, the last one is left.

        Raises SourceError on what makes no sense; what came before it is then repeated by the server.
        """
        events: list[Event] = []
        at = 0
        while (at := self._rows.walker.walk(frames, at, self._run, self._most_keys)) < len(frames):
            event = self._receive(frames[at])
            if event is not None:
                self._hand_over(events)
                events.append(event)
            at += 1
        self._hand_over(events)
        return events

    def _hand_over(self, events: list[Event]) -> None:
        transaction = self._run.take()
        if transaction is not None:
            events.append(transaction)
        if self._run.reached:
            events.append(Keepalive(self._run.reached, reply_requested=False))
            self._run.reached = 0

    def _receive(self, frame: bytes) -> Keepalive | Garbage | Drift | None:
        parsed = parse_frame(frame)
        self._run.received = max(self._run.received, parsed.wal_end)
        if isinstance(parsed, Keepalive):
            if parsed.reply_requested or self._run.begun:
                return parsed._replace(within=self._run.begun)
            self._run.reached = max(self._run.reached, parsed.wal_end)
            return None
        return self._take(decode(parsed.payload))

    def _take(self, message: AnyMessage) -> Garbage | Drift | None:
        run = self._run
        if type(message) not in _ALLOWED[run.begun]:
            where = "inside" if run.begun else "outside"
            raise SourceError(f"{type(message).__name__} arrived {where} a transaction")
        if isinstance(message, (Insert, Update, Delete, Truncate)):
            run.open.rows += 1
            self._rows.route(message, run.open)
            run.open.shed(self._most_keys)
        elif isinstance(message, Begin):
            run.begin(message)
        elif isinstance(message, Commit):
            run.commit(message)
        elif isinstance(message, Relation):
            self._rows.describe(message)
        elif isinstance(message, Message):
            return self._hear(message)
        return None

    def _hear(self, message: Message) -> Garbage | Drift | None:
        if message.prefix not in (PREFIX, DDL_PREFIX):
            return None
        if not (message.transactional and self._run.begun):
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
