"""The daemon's life: start or refuse, follow the source, reconnect, drain.

Whatever ends a conversation with the source is followed by another one: the server repeats what was not acknowledged,
and invalidating twice is harmless. Only lost changes (GapError) end the daemon, because no reconnect brings them
back.
"""

import logging
import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import NamedTuple

from leasecache.errors import ConfigError, GapError, SourceError
from leasecache.invalidation.dispatch import Dispatcher, Ring
from leasecache.invalidation.follow import Follower, Limits
from leasecache.invalidation.gate import Gate, choose
from leasecache.invalidation.logs import event
from leasecache.invalidation.router import Router
from leasecache.invalidation.settings import SourceSettings
from leasecache.invalidation.source import Replication, SlotInUseError, redact
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.stream import Stream

SLOT_WAIT = 5.0  # s at start: the walsender of a predecessor that died may linger
RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # s between attempts to reconnect
SILENCE_LEAST = 30.0  # s

_INCARNATION = "select pg_postmaster_start_time()::text"
_NODE = "select pg_is_in_recovery(), extract(epoch from current_setting('wal_sender_timeout')::interval)"


class _Session(NamedTuple):
    follower: Follower
    connections: ExitStack


class Daemon:
    """Follow one slot until told to stop."""

    def __init__(
        self, source: SourceSettings, router: Router, ring: Ring, monitor: Monitor, limits: Limits | None = None
    ) -> None:
        self._source = source
        self._router = router
        self._monitor = monitor
        self._limits = limits or Limits()
        self._stopping = False
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._bell, False)
        self._dispatcher = Dispatcher(ring, monitor, self._ring)
        self._session: _Session | None = None
        self._system: str | None = None
        self._gate = source.gate
        self._delay = 0.0
        self._began = 0.0

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler and from any thread."""
        self._stopping = True
        self._ring()

    def run(self) -> None:
        """Follow the source until `stop`. Raises ConfigError when it cannot start, GapError when changes are lost."""
        try:
            self._session = self._start()
            while not self._stopping:
                self._guarded(self._turn)
            self._guarded(self._finish)
        finally:
            self._close_session()
            self._dispatcher.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except GapError:
            raise
        except SourceError as error:
            self._lost(str(error))
        except Exception as error:  # the top loop: whatever it is, a new conversation repeats what was not acknowledged
            self._monitor.crashed(error)
            self._lost(f"unexpected {type(error).__name__}")

    def _turn(self) -> None:
        if self._session is None:
            self._rest(self._delay)
            if not self._stopping:
                self._session = self._open()
        else:
            self._session.follower.turn(self._ear)
            self._hush()

    def _lost(self, reason: str) -> None:
        lasted = self._session is not None and time.monotonic() - self._began > RETRY_MOST
        self._close_session()
        self._delay = RETRY_FIRST if lasted else min(max(self._delay * 2, RETRY_FIRST), RETRY_MOST)
        self._monitor.disconnected(reason, self._delay)

    def _finish(self) -> None:
        if self._session is None:
            return
        complete = self._session.follower.drain(self._ear, self._hush)
        event(logging.INFO if complete else logging.WARNING, "stopped", drained=complete)

    def _start(self) -> _Session | None:
        deadline = time.monotonic() + SLOT_WAIT
        while not self._stopping:
            try:
                return self._open()
            except SlotInUseError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(f"{error}; stop the other daemon, or give this one a slot of its own") from None
                self._rest(RETRY_FIRST)
            except SourceError as error:
                raise ConfigError(str(error)) from None
        return None

    def _open(self) -> _Session:
        with ExitStack() as opened:
            replication = Replication(self._source.dsn)
            opened.callback(replication.close)
            gate = Gate(self._source.dsn)
            opened.callback(gate.close)
            self._recognise(replication, gate)
            (in_recovery, timeout), *_ = replication.query(_NODE)
            name, why = choose(self._gate, in_recovery=in_recovery == "t")
            replication.start(self._source.slot, self._source.publication)
            self._gate = "auto"  # what the settings say held at the start; a standby may be promoted since
            self._began = time.monotonic()
            self._dispatcher.restart()
            self._monitor.connected(name, why, source=redact(self._source.dsn), slot=self._source.slot)
            limits = _within(self._limits, float(timeout or 0))
            stream = Stream(self._router)
            follower = Follower(replication, gate, stream, self._dispatcher, self._monitor, limits)
            return _Session(follower, opened.pop_all())

    def _recognise(self, replication: Replication, gate: Gate) -> None:
        """Refuse a dsn that leads to several servers, and a server that is not the one of before."""
        if replication.query(_INCARNATION)[0][0] != gate.query(_INCARNATION)[0][0]:
            raise SourceError("the dsn leads to different servers; name one node, not a balancer")
        system = replication.query("IDENTIFY_SYSTEM")[0][0]
        if self._system not in (None, system):
            raise GapError(
                "the source is another database cluster than before; clear the cache, then restart the daemon"
            )
        self._system = system

    def _rest(self, seconds: float) -> None:
        """Wait, while nodes are still told what they have to be told."""
        deadline = time.monotonic() + seconds
        rung = select.poll()
        rung.register(self._ear, select.POLLIN)
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            rung.poll(min(left, RETRY_FIRST) * 1000)
            self._hush()
            self._dispatcher.step(time.monotonic())

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.connections.close()
            self._session = None

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._bell, b"!")

    def _hush(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._ear, 4096)


def _within(limits: Limits, sender_timeout: float) -> Limits:
    """Report well within the server's `wal_sender_timeout` (s, 0 = none), and expect as much of the server."""
    if not sender_timeout:
        return replace(limits, silence=0.0)
    silence = max(2 * sender_timeout, SILENCE_LEAST)
    return replace(limits, status_every=min(limits.status_every, sender_timeout / 3), silence=silence)
