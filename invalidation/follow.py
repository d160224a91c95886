"""Following one replication conversation: read, hold at the gate, dispatch, acknowledge.

One thread, one loop, nothing in it that waits but the wait itself; so keepalives are answered while the gate holds
and while nodes are away. When too much is pending the stream is not read, and the server waits; it still hears from
us in time.
"""

import math
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from leasecache.errors import SourceError
from leasecache.invalidation.dispatch import Dispatcher
from leasecache.invalidation.gate import View
from leasecache.invalidation.held import Held
from leasecache.invalidation.readers import Readers
from leasecache.invalidation.source import Replication
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.stream import (
    Drift,
    Event,
    Garbage,
    Keepalive,
    Stream,
    Transaction,
    sent_at,
    status_update,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long and how much; the defaults suit production."""

    status_every: float = 10.0  # s between reports to the server, at most
    acknowledge_every: float = 0.1  # s between reports of progress, at least
    silence: float = 120.0  # s without a frame after which the source is taken for dead, 0 = never
    gate_first: float = 0.001  # s until a gate that holds is asked again, doubling ...
    gate_most: float = 0.02  # ... up to this
    gate_idle: float = 5.0  # s between questions while nothing is held: a network may lose a reader without a word
    pending: int = 500_000  # keys and transactions held before the stream is not read
    frames: int = 8_000  # read per turn
    flood: int = 64  # frames at once that show the source to be ahead of us ...
    collect: float = 0.002  # s to let more of them arrive then: a call to the system for each would cost most of all
    collect_part: float = 0.1  # of what the source is late with them, to let still more arrive ...
    collect_most: float = 0.02  # ... up to this, s
    everything: float = 0.1  # s between looks at whatever a descriptor may not have announced
    leave: float = 1.0  # s that the source may take no other connection of ours before this one is ended
    drain: float = 10.0  # s to finish what is in flight when told to stop


class Follower:
    """One conversation with the source, from START_REPLICATION to its end."""

    def __init__(
        self,
        replication: Replication,
        gate: Readers,
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
        self._held = Held()
        self._asked_for = 0  # how many of those held had been received when the gate was asked
        self._asked_at = 0.0
        self._gate_due = 0.0
        self._gate_delay = limits.gate_first
        self._unread = True  # libpq may have frames that the socket will not announce
        self._read_at = 0.0  # monotonic s
        self._everything_at = 0.0  # monotonic s
        self._asking: list[int] = []  # the gate's descriptors
        self._acknowledged = 0  # W, as this turn has it
        self._pending = 0  # keys that nodes have not acknowledged, as this turn has it
        self._arrived: list[Transaction] = []  # in this turn
        self._waited: list[float] = []  # s at the gate, of those that have passed it in this turn
        self._reply = True
        self._reported_at = 0.0
        self._reported = 0
        self._heard_at = time.monotonic()
        self._alone_since: float | None = None  # monotonic s since which the source takes no other connection
        self.drifts: list[str] = []  # commands that may have changed the catalogues, visible now; see `looked`
        self._commands: list[str] = []  # the same of the transaction that comes next
        self._drifting: dict[int, list[str]] = {}  # the same of those that are held, by their ends
        self._recent: deque[tuple[int, float]] = deque(maxlen=10_000)  # ends and times of what was dispatched

    @property
    def idle(self) -> bool:
        """Whether nothing is held and every node has acknowledged everything."""
        return not len(self._held) and not len(self._dispatcher)

    def turn(self, wake: int, *, reading: bool = True) -> None:
        """Wait until something can be done, and do it. Raises SourceError when the conversation is over.

        `wake` is a descriptor that becomes readable when a node has answered; its owner empties it.
        """
        reading = reading and not self._full()
        ready = self._wait(wake, reading)
        now = time.monotonic()
        everything = not ready or wake in ready or now >= self._everything_at
        if everything:
            self._everything_at = now + self._limits.everything
        if everything or not ready.isdisjoint(self._asking):
            self._pass_gate(now)
        self._dispatcher.step(now)  # before more is read: nodes carry out what passed the gate meanwhile
        self._complete()
        if not reading:
            self._heard_at = now  # who does not listen cannot complain of silence
        elif (everything or self._unread or self._replication.socket in ready) and now >= self._read_at:
            self._read(now)
        self._question(now)
        self._observe()
        self._leave(now)
        self._report(time.monotonic())

    def _leave(self, now: float) -> None:
        """End the conversation with a source that takes no other connection: it may be stopping, and wait for W."""
        if self._gate.server is not None:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > self._limits.leave:
            raise SourceError("the source takes no other connection; it may be shutting down, and must not wait for us")

    def _full(self) -> bool:
        return len(self._held) + self._held.keys + self._pending > self._limits.pending

    def _wait(self, wake: int, reading: bool) -> set[int]:
        """Wait until something is to be done; return the descriptors that said so, none when it is time."""
        now = time.monotonic()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        listening = reading and now >= self._read_at
        events = (select.POLLIN if listening else 0) | (select.POLLOUT if self._replication.flush() else 0)
        if events:
            poll.register(self._replication.socket, events)
        self._asking = self._gate.sockets
        for socket in self._asking:  # also while nothing is asked: a reader that crashes ends the connection
            poll.register(socket, select.POLLIN)
        self._dispatcher.watch(poll)
        return {found for found, _ in poll.poll(max(0.0, self._next_due(now, reading) - now) * 1000)}

    def _next_due(self, now: float, reading: bool) -> float:
        if reading and self._unread:
            return now
        if self._gate.asked and self._gate.due is None and now >= self._read_at:
            return now + self._limits.everything  # until the answer there is nothing that could not wait so long
        progress = self._acknowledged > self._reported
        due = self._reported_at + (self._limits.acknowledge_every if progress else self._limits.status_every)
        due = min(due, self._next_question())
        if reading and now < self._read_at:
            due = min(due, self._read_at)
        if self._alone_since is not None:
            due = min(due, self._alone_since + self._limits.leave)
        node = self._dispatcher.next_due(now)
        return due if node is None else min(due, now + node)

    def _next_question(self) -> float:
        """Return when (monotonic s) the gate is to be asked, or a reader that is away to be tried, if none comes."""
        if self._gate.asked:
            return math.inf if self._gate.due is None else self._gate.due
        waiting = len(self._held) or self._gate.doubtful
        return self._gate_due if waiting else self._asked_at + self._limits.gate_idle

    def _read(self, now: float) -> None:
        frames = self._replication.read(self._limits.frames)
        self._unread = len(frames) == self._limits.frames
        if frames:
            self._heard_at = now
        elif self._limits.silence and now - self._heard_at > self._limits.silence:
            raise SourceError(f"the source has been silent for {now - self._heard_at:.0f} s")
        try:
            events = self._stream.feed(frames)
        except SourceError:
            self._monitor.decode_failed()
            raise
        if len(frames) >= self._limits.flood and not self._unread:
            self._read_at = now + self._let_come(frames[len(frames) - 1], events)
        for event in events:
            self._take(event, now)

    def _let_come(self, last: bytes, events: list[Event]) -> float:
        """Return the s to let more frames arrive: longer when the source is late with them, and hardly more."""
        limits = self._limits
        committed = [event.committed_at for event in events if isinstance(event, Transaction)]
        late = sent_at(last) - committed[0] if committed else 0.0
        return max(limits.collect, min(late * limits.collect_part, limits.collect_most))

    def _take(self, event: Event, now: float) -> None:
        if isinstance(event, Keepalive):
            self._reply = self._reply or event.reply_requested
            if not event.within:
                self._reach(event.wal_end, now)
        elif isinstance(event, Garbage):
            self._monitor.garbled(event.reason)
        elif isinstance(event, Drift):
            self._commands.append(event.tag)
        else:
            self._arrived.append(event)
            if self._commands:
                self._drifting[event.end_lsn], self._commands = self._commands, []
                self._hold(event, now)
            elif event.touched:
                self._hold(event, now)
            else:
                self._reach(event.end_lsn, now)

    def _hold(self, transaction: Transaction, now: float) -> None:
        self._held.add(transaction, now)
        self._gate_due = now

    def _reach(self, position: int, now: float) -> None:
        """Note that nothing before `position` is still to come."""
        if len(self._held) or self._gate.doubtful or self.drifts:
            self._held.reach(position, now)
        else:
            self._dispatcher.advance(position)

    def _pass_gate(self, now: float) -> None:
        view = self._gate.answer()
        if view is not None:
            self._release(view, now)

    def _question(self, now: float) -> None:
        if not self._gate.asked and now >= self._next_question():
            self._gate.ask()
            self._asked_for, self._asked_at = len(self._held), now
        self._monitor.gate_held(self._held.since, self._held.transactions)

    def _release(self, view: View, now: float) -> None:
        self._monitor.gate_answered(view)
        if len(self._held) == self._asked_for:
            self._gate_due = now + self._gate_delay  # else some have arrived since, and are due at once
        released = 0
        if self._relied_upon(view):
            for transaction, since in self._held.release(view, self._asked_for):
                self._dispatch(transaction, now - since)
                released += 1
            self._settle()
        again = released or not len(self._held)
        self._gate_delay = self._limits.gate_first if again else min(self._gate_delay * 2, self._limits.gate_most)

    def _settle(self) -> None:
        """Let W pass what is done; not a command that may have changed the catalogues before somebody has looked."""
        position = None if self.drifts or self._gate.doubtful else self._held.settle()
        if position is not None:
            for end in [end for end in self._drifting if end <= position]:
                del self._drifting[end]
            self._dispatcher.advance(position)

    def looked(self) -> None:
        """Note that the catalogues have been looked at since the last of `drifts` became visible."""
        self.drifts.clear()
        self._settle()

    def _relied_upon(self, view: View) -> bool:
        """Whether the view counts. After a reader went back in time new generations come first.

        And before those every reader must show whatever was released: who reads earlier, reads an older state, and
        must store it under the old generation, where nobody looks any more.
        """
        if view.rewound is None:
            return True
        if not view.reaches(self._gate.released):
            return False
        self._dispatcher.bump(view.rewound)
        self._gate.trust()
        return True

    def _dispatch(self, transaction: Transaction, waited: float) -> None:
        touched = transaction.touched
        self._gate.released = max(self._gate.released, transaction.end_lsn)
        self._dispatcher.put(touched.keys, touched.explicit)
        if touched.everything is not None:
            self._dispatcher.bump(touched.everything)
        self.drifts += self._drifting.get(transaction.end_lsn, ())  # once more when the last of several is visible
        self._recent.append((transaction.end_lsn, transaction.committed_at))
        self._waited.append(waited)

    def _complete(self) -> None:
        position = self._acknowledged = self._dispatcher.acknowledged
        while self._recent and self._recent[0][0] <= position:
            self._monitor.completed(self._recent.popleft()[1])

    def _observe(self) -> None:
        """Tell of this turn, now that others do what it has set going."""
        for transaction in self._arrived:
            self._monitor.received(transaction)
        for waited in self._waited:
            self._monitor.gate_passed(waited)
        self._arrived, self._waited = [], []
        self._complete()
        self._pending = len(self._dispatcher)
        self._monitor.position(self._stream.received, self._acknowledged, self._pending)

    def _report(self, now: float) -> None:
        position = self._acknowledged
        since = now - self._reported_at
        progress = position > self._reported and since >= self._limits.acknowledge_every
        due = since >= self._limits.status_every
        if self._reply or progress or due:
            self.report(reply_requested=due)

    def report(self, *, reply_requested: bool = False) -> None:
        """Acknowledge W to the source now."""
        self._reported = self._dispatcher.confirm()
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
