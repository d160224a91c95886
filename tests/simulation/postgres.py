"""Connections to simulated database nodes: questions, and the replication conversation with its walsender."""

from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import pq

from leasecache.errors import GapError, SourceError
from leasecache.invalidation.source import SlotInUseError
from tests.simulation import pgoutput
from tests.simulation.database import RELATIONS, Node, Slot
from tests.simulation.fakes import Descriptor, Descriptors
from tests.simulation.kernel import current_owner

SENDER_TIMEOUT = 20.0  # s without a status after which a walsender ends

Rows = list[tuple[Any, ...]]
Answerer = Callable[[Node, str, Any, int], Rows]  # a node, a question, its parameters, the pid that serves


class Connection:
    """What both kinds of connection have in common: a node, and a life of that node."""

    def __init__(self, node: Node, descriptors: Descriptors) -> None:
        node.kernel.latency()
        if not node.up:
            raise SourceError(f"cannot connect to {node.name}: it is down")
        self.node, self.kernel, self.owner = node, node.kernel, current_owner()
        self.life = node.life
        self.descriptor = Descriptor()
        self.socket = self.pid = descriptors.add(self.descriptor)
        self.closed = False
        node.connections.append(self)  # whose end it announces when it goes

    @property
    def broken(self) -> bool:
        """Whether the node at the other end has gone."""
        return self.closed or self.life != self.node.life or not self.node.up

    def check(self) -> None:
        """Raise what libpq raises on a connection that has ended."""
        if self.broken:
            self.descriptor.readable = True
            raise psycopg.OperationalError(f"{self.node.name} closed the connection")

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        if self in self.node.connections:
            self.node.connections.remove(self)


class Result:
    """Rows as libpq gives them: text."""

    status = pq.ExecStatus.TUPLES_OK

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.ntuples = len(rows)
        self.nfields = len(rows[0]) if rows else 0

    def get_value(self, row: int, column: int) -> bytes | None:
        """Return one field."""
        return as_text(self._rows[row][column])


class PgConn(Connection):
    """`psycopg.pq.PGconn` for one question at a time."""

    def __init__(self, node: Node, descriptors: Descriptors, answer: Answerer) -> None:
        super().__init__(node, descriptors)
        self._answer = answer
        self._results: deque[Result | None] = deque()
        self._pending = False
        self._arrived = False

    def send_query(self, sql: bytes) -> None:
        """Put a question; the answer is looked up some time later, and arrives later still."""
        self.check()
        self._pending, self._arrived = True, False
        self.kernel.spawn(self._serve, sql.decode())

    def _serve(self, sql: str) -> None:
        self.kernel.latency(0.002)
        if self.broken:
            self.descriptor.announce(self.kernel)
            return
        rows = self._answer(self.node, sql, None, self.pid)
        self.kernel.latency(0.002)
        self._results = deque([Result(rows), None])
        self._arrived = True
        self.descriptor.announce(self.kernel)

    def consume_input(self) -> None:
        """Read what is there."""
        self.check()
        self.descriptor.readable = False

    def is_busy(self) -> bool:
        """Whether the answer is still to come."""
        return self._pending and not self._arrived

    def get_result(self) -> Result | None:
        """Return the next result, None after the last."""
        result = self._results.popleft() if self._results else None
        if result is None:
            self._pending = False
        return result


class Cursor:
    """What `execute` returns."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def fetchall(self) -> Rows:
        """Return the rows."""
        return self._rows


class FakeConnection:
    """`psycopg.Connection` in autocommit mode."""

    def __init__(self, node: Node, descriptors: Descriptors, answer: Answerer) -> None:
        self.pgconn = PgConn(node, descriptors, answer)
        self._answer = answer

    def execute(self, sql: bytes | str, parameters: Any = None) -> Cursor:
        """Put a question and wait for the answer."""
        pg = self.pgconn
        pg.kernel.latency(0.002)
        pg.check()
        rows = self._answer(pg.node, sql.decode() if isinstance(sql, bytes) else sql, parameters, pg.pid)
        pg.kernel.latency(0.002)
        pg.check()
        return Cursor(rows)

    def close(self) -> None:
        """Hang up."""
        self.pgconn.close()

    def __enter__(self) -> "FakeConnection":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Conversation(Connection):
    """`invalidation.source.Replication`: frames from a walsender, statuses to it."""

    def __init__(self, node: Node, descriptors: Descriptors, answer: Answerer) -> None:
        super().__init__(node, descriptors)
        self._answer = answer
        self._frames: deque[bytes] = deque()
        self._statuses: deque[bytes] = deque()
        self._slot: Slot | None = None
        self._heard = self.kernel.now
        self._ended = False
        self.sent = 0  # position up to which everything has been sent
        self.told: Callable[[int, int, int], None] = lambda position, sent, confirmed: (
            None
        )  # of each status that arrives

    def query(self, sql: str) -> list[tuple[str | None, ...]]:
        """Return the rows of a question as text."""
        self.kernel.latency(0.002)
        self._check()
        rows = self._answer(self.node, sql, None, self.pid)
        return [tuple(None if (text := as_text(field)) is None else text.decode() for field in row) for row in rows]

    def start(self, slot: str, publication: str) -> None:
        """Begin to stream."""
        self.kernel.latency(0.002)
        self._check()
        found = self.node.slots.get(slot)
        if found is None or found.lost:
            raise GapError(f"slot {slot!r} " + ("is gone" if found is None else "has lost changes"))
        if found.active is not None:
            raise SlotInUseError(f"slot {slot!r} is in use")
        found.active = self
        self._slot = found
        self._heard = self.kernel.now
        self.kernel.spawn(self._send_all, found)
        self.kernel.latency(0.002)

    def _check(self) -> None:
        try:
            self.check()
        except psycopg.Error as error:
            raise SourceError(f"the stream broke: {error}") from None

    def read(self, limit: int) -> list[bytes]:
        """Return the frames that are there."""
        if not self._frames:
            if self._ended or self.broken:
                raise SourceError("the stream broke")
            self.descriptor.readable = False
        return [self._frames.popleft() for _ in range(min(limit, len(self._frames)))]

    def send(self, frame: bytes) -> None:
        """Send a status; it arrives later, unless the connection breaks."""
        if self._ended or self.broken:
            raise SourceError("the stream broke")
        self._statuses.append(frame)
        self.kernel.spawn(self._receive)

    def flush(self) -> bool:
        """Have nothing queued."""
        return False

    def stop(self, timeout: float) -> None:
        """End well: the server reads every status first."""
        self.kernel.sleep(0.002)
        while self._statuses and not self.broken:
            self._take(self._statuses.popleft())

    def close(self) -> None:
        """Hang up; the walsender notices some time later, and keeps the slot until then."""
        super().close()
        self.kernel.spawn(self._linger)

    def _linger(self) -> None:
        dice = self.kernel.random.random()
        self.kernel.sleep(0.001 if dice < 0.6 else 3 * self.kernel.random.random())
        self._release()

    def _release(self) -> None:
        if self._slot is not None and self._slot.active is self:
            self._slot.active = None

    def _receive(self) -> None:
        self.kernel.latency(0.002)
        if self._statuses and (not self.broken or self.kernel.random.random() < 0.5) and self.life == self.node.life:
            self._take(self._statuses.popleft())

    def _take(self, status: bytes) -> None:
        position, reply = pgoutput.flushed(status)
        self._heard = self.kernel.now
        slot = self._slot
        if slot is None or slot.active is not self:
            return
        self.told(position, self.sent, slot.confirmed)
        slot.confirmed = max(slot.confirmed, position)
        if reply:
            self._deliver(pgoutput.keepalive(self.sent, False))

    def _send_all(self, slot: Slot) -> None:
        kernel, node = self.kernel, self.node
        self.sent = slot.confirmed
        begun = [each for each in node.database.log if each.end_lsn > slot.confirmed]
        count = len(node.database.log) - len(begun)
        described = False
        asked = kernel.now
        while not self.broken and slot.active is self and not slot.lost and not self._ended:
            log = node.database.log
            if kernel.now - self._heard > SENDER_TIMEOUT:
                break
            if count < len(log) and log[count].end_lsn <= node.sendable:
                self._send(log[count], described)
                described, count = True, count + 1
            else:
                self.sent = max(self.sent, node.sendable)
                urgent = kernel.now - max(self._heard, asked) > SENDER_TIMEOUT / 2
                if urgent or kernel.random.random() < 0.5:
                    self._deliver(pgoutput.keepalive(self.sent, urgent))
                    asked = kernel.now if urgent else asked
                kernel.wait((node.changed, node.database.grown), kernel.random.choice([0.5, 2.0]))
            kernel.latency(0.003)
        self._end()

    def _send(self, transaction: Any, described: bool) -> None:
        frames = list(transaction.frames())
        if not described:
            frames[1:1] = [pgoutput.xlog_data(0, relation) for relation in RELATIONS]
        half = self.kernel.random.randrange(1, len(frames))
        for frame in frames[:half]:
            self._deliver(frame)
        if self.kernel.random.random() < 0.2:
            self.kernel.latency(0.003)
            if self.kernel.random.random() < 0.5:  # amid a transaction the position says nothing about it
                self._deliver(pgoutput.keepalive(transaction.end_lsn, False))
        for frame in frames[half:]:
            self._deliver(frame)
        self.sent = transaction.end_lsn

    def _deliver(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.descriptor.announce(self.kernel)

    def terminate(self) -> None:
        """End it at the server's side."""
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._release()
        self.descriptor.announce(self.kernel)


def as_text(value: object) -> bytes | None:
    """Return a value as Postgres writes it."""
    if value is None:
        return None
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return str(value).encode()
