"""The daemon's life: start or refuse, wait for the slot, follow the source, reconnect, recover what was lost, drain.

Whatever ends a conversation with the source is followed by another one: the server repeats what was not acknowledged,
and invalidating twice is harmless. When changes may have been lost the order of `recovery` is kept before the next
conversation begins.
"""

import logging
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from leasecache.errors import ConfigError, GapError, LeasecacheError, SourceError
from leasecache.invalidation.ddl import literal
from leasecache.invalidation.dispatch import Dispatcher, Ring, Terms
from leasecache.invalidation.drift import Watch
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.follow import Follower, Limits
from leasecache.invalidation.logs import event
from leasecache.invalidation.lsn import parse_lsn
from leasecache.invalidation.readers import Readers
from leasecache.invalidation.recovery import Budget, await_arrival, renew_slot
from leasecache.invalidation.router import Router
from leasecache.invalidation.settings import SourceSettings
from leasecache.invalidation.source import Replication, SlotInUseError, UndecodableError, ask, connect, redact
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.stream import MOST_KEYS, Stream, status_update
from leasecache.invalidation.tenure import Tenure
from leasecache.invalidation.triggers import loses
from leasecache.rules import RuleSet

RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # s between attempts to reconnect
SPARE_EVERY = 0.5  # s between two looks of a spare at the slot
SILENCE_LEAST = 30.0  # s
LOOK_WITHIN = 5.0  # s that the first look at the catalogues may take

_SERVER = "select pg_postmaster_start_time()::text"
_TIMEOUT = "select extract(epoch from current_setting('wal_sender_timeout')::interval)"
_SLOT = "select wal_status, confirmed_flush_lsn, active_pid from pg_replication_slots where slot_name = '{}'"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the daemon does with changes: which keys they touch, who owns those, and what is promised for the nodes."""

    router: Router
    rules: RuleSet
    rings: Sequence[Ring]
    terms: Terms
    drift_every: float = 30.0  # s between two looks at the catalogues
    transaction_keys: int = MOST_KEYS  # of one transaction; more of them make a new generation


class _Past:
    """What was true of the source in the last conversation."""

    def __init__(self) -> None:
        self.needed = 0  # position that readers must show before anything is promised anew
        self._system: str | None = None
        self._timeline = 0

    def differs(self, system: str, timeline: int, *, in_recovery: bool) -> str | None:
        """Return why changes may have been lost, None if nothing says so; remember what is true now.

        A standby that follows a new primary has another timeline, too, and has lost nothing.
        """
        before, self._system = self._system, system
        moved, self._timeline = timeline != self._timeline, timeline
        if before is None:
            return None
        if before != system:
            return "the source is another database cluster than before"
        return "the source is on another timeline than before" if moved and not in_recovery else None


class _Session(NamedTuple):
    follower: Follower
    connections: ExitStack


class Daemon:
    """Follow one slot until told to stop."""

    def __init__(self, source: SourceSettings, work: Work, monitor: Monitor, limits: Limits | None = None) -> None:
        """Raises ConfigError when the journal's directory cannot be made."""
        self._source = source
        self._work = work
        self._monitor = monitor
        self._limits = limits or Limits()
        self._stopping = False
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._bell, False)
        self._readers = Readers(source, monitor, self._ring)
        self._dispatcher = Dispatcher(
            work.rings, work.rules, work.terms, monitor, self._ring, source.slot, lambda: self._readers.mark
        )
        self._watch = Watch(source.dsn, source.slot, source.publication, work.rules, self._ring, work.drift_every)
        self._session: _Session | None = None
        self._past = _Past()
        self._budget = Budget()
        self._gap: str | None = None  # why changes may have been lost, and nothing has been done about it yet
        self._gap_since = 0.0  # monotonic s
        self._undecodable = False  # the last conversation ended at changes that no slot of before can pass
        self._look = 0  # the look at the catalogues that the stream waits for
        self._looked_for = 0  # because of how many commands
        self._tables: Mapping[str, str] | None = None  # what the journal has of them
        self._delay = 0.0
        self._began = 0.0
        self._stood_by = False

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler and from any thread."""
        self._stopping = True
        self._ring()

    def run(self) -> None:
        """Follow the source until `stop`. Raises ConfigError when it cannot start, GapError when it gives up."""
        self._watch.start()
        try:
            while not self._stopping:
                self._guarded(self._turn)
            self._guarded(self._finish)
        finally:
            self._close_session()
            self._watch.close()
            self._readers.close()
            self._dispatcher.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except GapError as error:
            self._note_gap(str(error))
            self._lost(str(error))
        except UndecodableError as error:
            self._undecodable = True
            self._lost(str(error))
        except SourceError as error:
            if not (self._began or self._stood_by):
                raise ConfigError(str(error)) from None  # it has never worked: somebody is there to read this
            self._lost(str(error))
        except LeasecacheError:
            raise
        except Exception as error:  # the top loop: whatever it is, a new conversation repeats what was not acknowledged
            self._monitor.crashed(error)
            self._lost(f"unexpected {type(error).__name__}")

    def _note_gap(self, reason: str, *, free: bool = False) -> None:
        """Note that changes may have been lost: the next conversation begins with a recovery, `free` of the budget."""
        if self._gap is not None:
            return
        if not free:
            self._budget.spend(reason)
        self._monitor.gap(reason)
        self._gap, self._gap_since = reason, time.monotonic()
        self._dispatcher.doubt()

    def _turn(self) -> None:
        if self._session is None:
            self._rest(self._delay)
            if not self._stopping:
                self._look = self._looked_for = 0
                self._session = self._open()
        else:
            self._session.follower.turn(self._ear)
            self._hush()
            self._look_out(self._session.follower)

    def _look_out(self, follower: Follower) -> None:
        """Hear what the catalogues say; changes that may not have been sent end the conversation."""
        finished = self._watch.finished  # before what it has found is taken: later finds are of a later look
        tables = self._watch.marks()
        findings = self._watch.take()
        if findings is not None:
            self._monitor.drifted(findings)
            self._dispatcher.serve(_served(self._work.rules, findings))
        for loss in self._watch.losses():
            self._past.needed = max(self._past.needed, loss.position)
            self._note_gap(loss.reason, free=True)  # somebody changed the catalogue, and may do so often
        if self._gap is not None:
            raise SourceError(self._gap)
        if tables is not None and tables is not self._tables:
            self._tables = tables
            self._dispatcher.stand_on(tables)
        if follower.drifts:
            self._await_look(follower, finished)

    def _await_look(self, follower: Follower, finished: int) -> None:
        """Hold W at commands that may have changed the catalogues until a look that began after them has `finished`.

        Around some of them changes may not have been sent, whatever the look finds: every node gets a new generation.
        """
        losing = [tag for tag in follower.drifts[self._looked_for :] if loses(tag, self._work.rules)]
        if losing:
            self._dispatcher.bump(f"{losing[0]} ran on the primary")
        if len(follower.drifts) > self._looked_for:
            self._look, self._looked_for = self._watch.ask(), len(follower.drifts)
        elif finished >= self._look:
            self._looked_for = 0
            follower.looked()

    def _lost(self, reason: str) -> None:
        lasted = self._session is not None and time.monotonic() - self._began > RETRY_MOST
        self._close_session()
        self._delay = RETRY_FIRST if lasted else min(max(self._delay * 2, RETRY_FIRST), RETRY_MOST)
        self._monitor.disconnected(reason, self._delay)

    def _finish(self) -> None:
        session = self._session  # without one, a spare has nothing in flight, and others leave that to the next daemon
        complete = not self._began if session is None else session.follower.drain(self._ear, self._hush)
        event(logging.INFO if complete else logging.WARNING, "stopped", drained=complete)

    def _open(self) -> _Session | None:
        """Begin a conversation; None when told to stop meanwhile."""
        with ExitStack() as opened:
            self._readers.open()
            replication = Replication(self._source.dsn)
            opened.callback(replication.close)
            system = self._recognise(replication)
            passable = self._passes_undecodable(replication)
            if self._gap is not None:
                renew_slot(self._source.dsn, self._source.slot, anyway=passable)
                self._undecodable = self._undecodable and not passable
            if not self._await_slot(replication):
                return None
            sender_timeout = float(replication.query(_TIMEOUT)[0][0] or 0)
            try:
                replication.start(self._source.slot, self._source.publication)
            except SlotInUseError:  # somebody was faster
                self._stood_by = True
                raise
            self._began = time.monotonic()
            confirmed = self._confirmed()  # from here on nobody else moves it
            self._readers.released = max(self._readers.released, confirmed)
            known = self._dispatcher.knows(system, confirmed, self._watch.marks(LOOK_WITHIN))
            if not self._arrive(replication, confirmed, known=known):
                return None
            self._dispatcher.begin(system, confirmed, time.monotonic(), known=known)
            self._recover()
            tenure = Tenure(self._source.dsn, self._source.slot, self._vouch)
            opened.callback(tenure.close)
            tenure.watch(replication.pid)
            where = {"source": redact(self._source.dsn), "slot": self._source.slot}
            self._monitor.connected(self._readers.gate, self._readers.why, **where)
            limits = _within(self._limits, sender_timeout)
            stream = Stream(self._work.router, self._work.transaction_keys)
            follower = Follower(replication, self._readers, stream, self._dispatcher, self._monitor, limits)
            return _Session(follower, opened.pop_all())

    def _recognise(self, replication: Replication) -> str:
        """Return the cluster's identifier; another one, or another timeline, than before is a gap.

        Raises SourceError when the dsn leads to another server now than the readers' connection does.
        """
        ((server,),) = replication.query(_SERVER)
        if server != self._readers.server:
            raise SourceError("the dsn leads to different servers; name one node, not a balancer")
        system, timeline, *_ = replication.query("IDENTIFY_SYSTEM")[0]
        ((in_recovery,),) = replication.query("select pg_is_in_recovery()")
        reason = self._past.differs(str(system), int(timeline or 0), in_recovery=in_recovery == "t")
        if reason is not None:
            self._readers.released = self._past.needed = 0  # these were positions of another log
            self._note_gap(reason)
        return str(system)

    def _passes_undecodable(self, replication: Replication) -> bool:
        """Tell whether a new slot would begin behind the changes that the last conversation ended at: that is a gap."""
        name = literal(self._source.publication)
        if not self._undecodable or not replication.query(f"select 1 from pg_publication where pubname = {name}"):
            return False
        self._note_gap("rows were changed while there was no publication")
        return True

    def _await_slot(self, replication: Replication) -> bool:
        """Wait as a spare while another daemon has the slot; tell whether to go on. Raises GapError when it is gone."""
        while True:
            states = replication.query(_SLOT.format(self._source.slot))
            if not states or states[0][0] == "lost":
                raise GapError(f"slot {self._source.slot!r} {'has lost changes' if states else 'is gone'}")
            if states[0][2] is None:
                return True
            self._stood_by = True
            self._monitor.standing_by(f"slot {self._source.slot!r} is in use by process {states[0][2]} of the server")
            if not self._rest(SPARE_EVERY):
                return False

    def _confirmed(self) -> int:
        with connect(self._source.dsn) as connection:
            ((_, confirmed, _),) = ask(connection, _SLOT.format(self._source.slot))
        return parse_lsn(str(confirmed))

    def _arrive(self, replication: Replication, confirmed: int, *, known: bool) -> bool:
        """Wait until readers are past what no change will be sent for, if that is in doubt; tell whether to go on."""
        if known and self._gap is None:
            return True
        reads_source = self._source.gate != "replay"
        dsns = [*([self._source.dsn] if reads_source else []), *self._source.readers]

        def rest(seconds: float) -> bool:
            replication.send(status_update(0, time.time()))  # that we are there, and acknowledge nothing
            return self._rest(seconds)

        return await_arrival(dsns, max(confirmed, self._past.needed), rest)

    def _recover(self) -> None:
        """After a gap: every node gets a new generation before anything is acknowledged."""
        if self._gap is not None:
            self._dispatcher.bump(self._gap)
            self._monitor.recovered(time.monotonic() - self._gap_since)
            self._gap, self._past.needed = None, 0

    def _vouch(self, at: float) -> None:
        self._dispatcher.vouch(at)
        self._ring()

    def _rest(self, seconds: float) -> bool:
        """Wait, while nodes are still told what they have to be told; tell whether to go on."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            rung = select.poll()
            rung.register(self._ear, select.POLLIN)
            self._dispatcher.watch(rung)
            rung.poll(min(left, RETRY_FIRST) * 1000)
            self._hush()
            self._dispatcher.step(time.monotonic())
        return not self._stopping

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.connections.close()
            self._session = None
            self._dispatcher.disown()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._bell, b"!")

    def _hush(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._ear, 4096)


def _served(rules: RuleSet, findings: Sequence[Finding]) -> RuleSet:
    """Return the rules whose changes arrive in spite of `findings`."""
    fatal = [finding for finding in findings if finding.fatal]
    broken = {finding.rule for finding in fatal}
    kept = () if None in broken else tuple(rule for rule in rules.rules if rule.function not in broken)
    return replace(rules, rules=kept)


def _within(limits: Limits, sender_timeout: float) -> Limits:
    """Report well within the server's `wal_sender_timeout` (s, 0 = none), and expect as much of the server."""
    if not sender_timeout:
        return replace(limits, silence=0.0)
    silence = max(2 * sender_timeout, SILENCE_LEAST)
    return replace(limits, status_every=min(limits.status_every, sender_timeout / 3), silence=silence)
