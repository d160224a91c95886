"""Following one replication conversation: read, hold at the gate, dispatch, acknowledge.

One thread, one loop, nothing in it that waits but the wait itself; so keepalives are answered while the gate holds
and while nodes are away. When too much is pending the stream is not read, and the server waits; it still hears from
us in time.
"""

import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from leasecache.errors import SourceError
from leasecache.invalidation.dispatch import Dispatcher
from leasecache.invalidation.gate import Gate, View
from leasecache.invalidation.source import Replication
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.stream import Drift, Garbage, Keepalive, Stream, Transaction, status_update


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long and how much; the defaults suit production."""

    status_every: float = 10.0  # s between reports to the server, at most
    acknowledge_every: float = 0.1  # s between reports of progress, at least
    silence: float = 120.0  # s without a frame after which the source is taken for dead, 0 = never
    gate_first: float = 0.001  # s until a gate that holds is asked again, doubling ...
    gate_most: float = 0.02  # ... up to this
    pending: int = 500_000  # keys and transactions held before the stream is not read
    frames: int = 2_000  # read per turn
    drain: float = 10.0  # s to finish what is in flight when told to stop


@dataclass(slots=True)
class _Held:
    """A transaction that waits for the gate, or a position that waits for those before it."""

    position: int
    transaction: Transaction | None
    since: float  # monotonic s


class Follower:
    """One conversation with the source, from START_REPLICATION to its end."""

    def __init__(
        self,
        replication: Replication,
        gate: Gate,
        stream: Stream,
        dispatcher: Dispatcher,
        monitor: Monitor,
        limits: Limits,
    ) -> None:
        self._replication = replication
        self._gate = gate
        self._stream = stream
        self._dispatcher = dispatcher
        self._monitor = monitor
        self._limits = limits
        self._queue: deque[_Held] = deque()
        self._held = self._held_keys = 0  # transactions that the gate holds, and their keys
        self._asked_for = 0  # how many of the queue had been received when the gate was asked
        self._gate_due = 0.0
        self._gate_delay = limits.gate_first
        self._unread = True  # libpq may have frames that the socket will not announce
        self._reply = True
        self._reported_at = 0.0
        self._reported = 0
        self._heard_at = time.monotonic()
        self.drift: str | None = None  # the last statement that changed the schema; whoever has looked sets it to None
        self._recent: deque[Transaction] = deque(maxlen=10_000)  # dispatched, for the latency histogram

    @property
    def idle(self) -> bool:
        """Whether nothing is held and every node has acknowledged everything."""
        return not self._queue and not len(self._dispatcher)

    def turn(self, wake: int, *, reading: bool = True) -> None:
        """Wait until something can be done, and do it. Raises SourceError when the conversation is over.

        `wake` is a descriptor that becomes readable when a node has answered; its owner empties it.
        """
        reading = reading and not self._full()
        self._wait(wake, reading)
        now = time.monotonic()
        if reading:
            self._read(now)
        else:
            self._heard_at = now  # who does not listen cannot complain of silence
        self._pass_gate(now)
        self._dispatcher.step(now)
        self._observe()
        self._report(time.monotonic())

    def _full(self) -> bool:
        return len(self._queue) + self._held_keys + len(self._dispatcher) > self._limits.pending

    def _wait(self, wake: int, reading: bool) -> None:
        now = time.monotonic()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        events = (select.POLLIN if reading else 0) | (select.POLLOUT if self._replication.flush() else 0)
        if events:
            poll.register(self._replication.socket, events)
        if self._gate.asked:
            poll.register(self._gate.socket, select.POLLIN)
        poll.poll(max(0.0, self._next_due(now, reading) - now) * 1000)

    def _next_due(self, now: float, reading: bool) -> float:
        if reading and self._unread:
            return now
        progress = self._dispatcher.acknowledged > self._reported
        due = self._reported_at + (self._limits.acknowledge_every if progress else self._limits.status_every)
        if self._queue and not self._gate.asked:
            due = min(due, self._gate_due)
        retry = self._dispatcher.next_retry(now)
        return due if retry is None else min(due, now + retry)

    def _read(self, now: float) -> None:
        frames = self._replication.read(self._limits.frames)
        self._unread = len(frames) == self._limits.frames
        if frames:
            self._heard_at = now
        elif self._limits.silence and now - self._heard_at > self._limits.silence:
            raise SourceError(f"the source has been silent for {now - self._heard_at:.0f} s")
        for frame in frames:
            self._take(frame, now)

    def _take(self, frame: bytes, now: float) -> None:
        try:
            arrived = self._stream.receive(frame)
        except SourceError:
            self._monitor.decode_failed()
            raise
        if isinstance(arrived, Keepalive):
            self._reply = self._reply or arrived.reply_requested
            if not self._stream.in_transaction:
                self._reach(arrived.wal_end, now)
        elif isinstance(arrived, Garbage):
            self._monitor.garbled(arrived.reason)
        elif isinstance(arrived, Drift):
            self.drift = arrived.tag
        elif arrived is not None:
            self._monitor.received(arrived)
            if arrived.touched:
                self._hold(arrived, now)
            else:
                self._reach(arrived.end_lsn, now)

    def _hold(self, transaction: Transaction, now: float) -> None:
        self._queue.append(_Held(transaction.end_lsn, transaction, now))
        self._held += 1
        self._held_keys += len(transaction.touched)
        self._gate_due = now

    def _reach(self, position: int, now: float) -> None:
        """Note that nothing before `position` is still to come."""
        if not self._queue:
            self._dispatcher.advance(position)
        elif self._queue[-1].transaction is None:
            self._queue[-1].position = position
        else:
            self._queue.append(_Held(position, None, now))

    def _pass_gate(self, now: float) -> None:
        if self._gate.asked:
            view = self._gate.answer()
            if view is not None:
                self._release(view, now)
        if self._queue and not self._gate.asked and now >= self._gate_due:
            self._gate.ask()
            self._asked_for = len(self._queue)

    def _release(self, view: View, now: float) -> None:
        self._monitor.gate_answered(view)
        if len(self._queue) == self._asked_for:
            self._gate_due = now + self._gate_delay  # else some have arrived since, and are due at once
        released = 0
        for held in islice(self._queue, self._asked_for):
            if held.transaction is not None and view.shows(held.transaction.xid):
                self._dispatch(held.transaction, now - held.since)
                held.transaction = None
                released += 1
        # A transaction may become visible before an earlier one; its keys go, the position waits for the prefix.
        while self._queue and self._queue[0].transaction is None:
            self._dispatcher.advance(self._queue.popleft().position)
        self._gate_delay = self._limits.gate_first if released else min(self._gate_delay * 2, self._limits.gate_most)
        self._monitor.gate_held(self._queue[0].since if self._queue else None, self._held)

    def _dispatch(self, transaction: Transaction, waited: float) -> None:
        self._held -= 1
        touched = transaction.touched
        self._held_keys -= len(touched)
        self._dispatcher.put(touched.keys, touched.explicit)
        if touched.everything is not None:
            self._dispatcher.bump(touched.everything)
        self._recent.append(transaction)
        self._monitor.gate_passed(waited)

    def _observe(self) -> None:
        position = self._dispatcher.acknowledged
        while self._recent and self._recent[0].end_lsn <= position:
            self._monitor.completed(self._recent.popleft())
        self._monitor.position(self._stream.received, position, len(self._dispatcher))

    def _report(self, now: float) -> None:
        position = self._dispatcher.acknowledged
        since = now - self._reported_at
        progress = position > self._reported and since >= self._limits.acknowledge_every
        due = since >= self._limits.status_every
        if self._reply or progress or due:
            self.report(reply_requested=due)

    def report(self, *, reply_requested: bool = False) -> None:
        """Acknowledge W to the source now."""
        self._reported = self._dispatcher.acknowledged
        self._reported_at = time.monotonic()
        self._reply = False
        self._replication.send(status_update(self._reported, time.time(), reply_requested=reply_requested))

    def drain(self, wake: int, between: Callable[[], None]) -> bool:
        """Finish what is in flight within the limit, acknowledge, end the conversation; return whether all was done."""
        deadline = time.monotonic() + self._limits.drain
        while not self.idle and time.monotonic() < deadline:
            self.turn(wake, reading=False)
            between()
        self.report()
        self._replication.stop(timeout=1.0)
        return self.idle
