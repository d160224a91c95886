"""A primary and its standbys: a log, what each node shows of it, and a replication slot.

What a key's rows add up to is the set of transactions that have touched the key: a number with a bit for each. A value
is fit when it has all the bits that it must have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import pgoutput
from tests.simulation.kernel import EPOCH, Kernel, Signal

ROWS = 8
COMMIT_BYTES = 48  # of a commit record
RELIDS = {"media": 1, "comments": 2}
RELATIONS = (
    pgoutput.relation(1, "media", "d", [("id", True), ("likes", False)]),
    pgoutput.relation(2, "comments", "i", [("id", True), ("media_id", True)]),
)
EXPLICIT = [f"shop:page:{number}".encode() for number in range(ROWS)]
GUARDED = [f"shop:{table}:{number}".encode() for table in RELIDS for number in range(ROWS)]


@dataclass
class Transaction:
    """One transaction of the primary."""

    number: int
    xid: int
    keys: Sequence[bytes]  # that it touches
    messages: Sequence[bytes]  # payloads between Begin and Commit
    commit_lsn: int = 0
    end_lsn: int = 0
    committed_at: float = 0.0  # virtual s
    visible: bool = False  # on the primary
    told: str = ""

    def frames(self) -> Iterator[bytes]:
        """Return what a walsender makes of it."""
        at = EPOCH + self.committed_at
        yield pgoutput.xlog_data(0, pgoutput.begin(self.commit_lsn, at, self.xid))
        for message in self.messages:
            yield pgoutput.xlog_data(self.commit_lsn - 1, message)
        yield pgoutput.xlog_data(self.end_lsn, pgoutput.commit(self.commit_lsn, self.end_lsn, at))


@dataclass
class Slot:
    """A logical replication slot of one node."""

    name: str
    confirmed: int
    active: object = None  # who streams from it
    lost: bool = False
    born: float = 0.0


@dataclass
class Database:
    """The log that all nodes share, and what has been promised about it."""

    kernel: Kernel
    system: str = "7000000000000000001"
    log: list[Transaction] = field(default_factory=list)  # in the order of commits
    touched: dict[bytes, list[Transaction]] = field(default_factory=dict)
    wal_end: int = 0x1000000
    next_xid: int = 1000
    ended: int = 999  # newest xid of those that have ended
    open: dict[int, None] = field(default_factory=dict)  # xids that have begun and are not visible yet
    waiting: dict[int, None] = field(default_factory=dict)  # those that wait for synchronous standbys
    grown: Signal = field(default_factory=Signal)

    def value(self, key: bytes, shown: "Node") -> int:
        """Return what a new snapshot of a node shows of a key."""
        return sum(1 << i for i, each in enumerate(self.touched.get(key, ())) if shown.shows(each))

    def due(self, key: bytes, position: int) -> int:
        """Return the bits of every transaction that ends at `position` or before."""
        return sum(1 << i for i, each in enumerate(self.touched.get(key, ())) if each.end_lsn <= position)

    def begin(self) -> int:
        """Give out the next xid."""
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self.open[xid] = None
        return xid

    @property
    def running(self) -> list[int]:
        """Return what a snapshot lists: of those that are open, the ones older than one that has ended."""
        return sorted([xid for xid in self.open if xid < self.ended])

    def end(self, xid: int) -> None:
        """Let new snapshots show what a transaction has done."""
        self.ended = max(self.ended, xid)
        self.open.pop(xid, None)
        self.waiting.pop(xid, None)

    def flush(self, transaction: Transaction) -> None:
        """Write the commit to the log: it is sent from here on, but not shown."""
        transaction.commit_lsn = self.wal_end + self.kernel.random.randrange(40, 400)
        transaction.end_lsn = self.wal_end = transaction.commit_lsn + COMMIT_BYTES
        transaction.committed_at = self.kernel.now
        self.log.append(transaction)
        for key in transaction.keys:
            self.touched.setdefault(key, []).append(transaction)
        self.grown.notify(self.kernel)

    def show(self, transaction: Transaction) -> None:
        """Let the primary show a transaction."""
        transaction.visible = True
        self.end(transaction.xid)

    def write_noise(self) -> None:
        """Write what concerns no table of ours."""
        self.wal_end += self.kernel.random.randrange(1, 5000)
        self.grown.notify(self.kernel)


class Node:
    """A server that answers questions, keeps slots and may be down."""

    def __init__(self, database: Database, name: str) -> None:
        self.database, self.name = database, name
        self.kernel = database.kernel
        self.up = True
        self.changed = Signal()  # something can be sent that could not before, or the node has gone down
        self.slots: dict[str, Slot] = {}
        self.connections: list[Any] = []
        self.life = 0  # connections of an earlier life are broken
        self.started = 1  # postmasters
        self.incarnation = 1  # checkpointers, which end when any process crashes

    @property
    def in_recovery(self) -> bool:
        """Whether it is a standby."""
        raise NotImplementedError

    @property
    def sendable(self) -> int:
        """Return the position up to which it may send its log."""
        raise NotImplementedError

    def shows(self, transaction: Transaction) -> bool:
        """Whether a new snapshot shows a transaction."""
        raise NotImplementedError

    def snapshot(self) -> str:
        """Return what pg_current_snapshot() does."""
        database = self.database
        running, later = database.running, database.ended + 1
        return f"{running[0] if running else later}:{later}:{','.join(map(str, running))}"

    def create_slot(self, name: str) -> int:
        """Make a slot that has everything committed from here on; return its consistent point."""
        self.slots[name] = Slot(name, self.sendable, born=self.kernel.now)
        return self.sendable

    def go_down(self) -> None:
        """Break every connection."""
        self.up = False
        self.life += 1
        for connection in self.connections:
            connection.descriptor.announce(self.kernel)
        self.connections.clear()
        for slot in self.slots.values():
            slot.active = None
        self.changed.notify(self.kernel)

    def come_up(self) -> None:
        """Let connections in."""
        self.up = True
        self.changed.notify(self.kernel)


class Primary(Node):
    """Where transactions are made; it sends them when they are flushed, and shows them later."""

    in_recovery = False

    @property
    def sendable(self) -> int:
        """Return the end of the log."""
        return self.database.wal_end

    def shows(self, transaction: Transaction) -> bool:
        """Whether it has ended for readers."""
        return transaction.visible

    def crash(self) -> None:
        """End at once; what was flushed is shown from the next start on, what was not is gone."""
        self.go_down()
        database = self.database
        for transaction in database.log:
            database.show(transaction)
        database.ended = database.next_xid - 1
        database.open.clear()
        database.waiting.clear()
        self.started += 1
        self.incarnation += 1


class Standby(Node):
    """Replays the log in order, some time later."""

    in_recovery = True

    def __init__(self, database: Database, name: str) -> None:
        super().__init__(database, name)
        self.replayed = database.wal_end
        self.lag = 0.01  # s, of the chosen ones mostly less
        self.paused = False
        self.kernel.spawn(self._replay)

    @property
    def sendable(self) -> int:
        """Return what it has replayed."""
        return self.replayed

    def shows(self, transaction: Transaction) -> bool:
        """Whether it has been replayed."""
        return transaction.end_lsn <= self.replayed

    def crash(self, back: int) -> None:
        """End at once, and begin again at an earlier point: up to `back` transactions are not shown for a while."""
        self.go_down()
        self.incarnation += 1
        shown = [each.end_lsn for each in self.database.log if self.shows(each)]
        if shown and back:
            earlier = shown[-back - 1 :][0]
            self.replayed = min(self.replayed, earlier)
            self.database.grown.notify(self.kernel)  # there is something to replay again

    def _replay(self) -> None:
        kernel, database = self.kernel, self.database
        while True:
            kernel.until(lambda: self.replayed < database.wal_end, database.grown)
            kernel.sleep(self.lag * kernel.random.random() ** 2)
            while self.paused or not self.up:
                kernel.sleep(0.02)
            following = next((each for each in database.log if each.end_lsn > self.replayed), None)
            self.replayed = following.end_lsn if following is not None else database.wal_end
            self.changed.notify(kernel)
