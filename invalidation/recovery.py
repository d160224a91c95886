"""After changes were lost: a new slot, then the wait until readers are past its start, and only then new generations.

In this order. New generations before the wait would be filled with what a reader shows that is still behind the slot's
start, and no change would ever come for it. The same wait comes before the first records of a daemon that cannot know
what its predecessor did.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from leasecache.errors import GapError, LeasecacheError
from leasecache.invalidation.ddl import create_on_standby, find_primary, slot_ddl
from leasecache.invalidation.lsn import format_lsn
from leasecache.invalidation.source import Connection, address, ask, connect, execute

MOST, WITHIN = 3, 3600.0  # recoveries within s, before an operator has to look
SETTLED = 0.2  # s: who was seen twice so far apart without waiting for standbys had not committed the first time

_STATE = "select pg_is_in_recovery(), pg_last_wal_replay_lsn() >= %s::pg_lsn"
_SERVER = "select current_setting('server_version_num')::int, pg_is_in_recovery()"
_SLOT = "select wal_status from pg_replication_slots where slot_name = %s"
_LATER = "select pg_current_xact_id()"  # a snapshot lists only those that are older than one that has ended
_RUNNING = "select x::text::bigint & 4294967295 from pg_snapshot_xip(pg_current_snapshot()) as x"
_COMMITTING = """
select backend_xid::text::bigint from pg_stat_activity
 where backend_xid is not null and (state is null or wait_event = 'SyncRep')
union all select transaction::text::bigint from pg_prepared_xacts
 where exists (select from pg_stat_activity where backend_xid is null and wait_event = 'SyncRep')
"""  # no state: the role may not see it; no transaction of one's own: another that had been prepared


class Budget:
    """How often changes may be lost within an hour before the daemon stops."""

    def __init__(self) -> None:
        self._spent: list[float] = []

    def spend(self, reason: str) -> None:
        """Count one more. Raises GapError when it is one too many."""
        now = time.monotonic()
        self._spent = [at for at in self._spent if now - at < WITHIN]
        if len(self._spent) >= MOST:
            raise GapError(
                f"{reason}, and changes have been lost {MOST} times within the hour; "
                "find out why (see the runbook), then start the daemon again"
            )
        self._spent.append(now)


def renew_slot(dsn: str, slot: str, *, anyway: bool = False) -> None:
    """Create the slot anew if it is gone or has lost changes, or `anyway`. Raises SourceError."""
    with connect(dsn) as source:
        states = ask(source, _SLOT, slot)
        if states and states[0][0] != "lost" and not anyway:
            return
        if states:
            ask(source, "select pg_drop_replication_slot(%s)", slot)
        ((version, in_recovery),) = ask(source, _SERVER)
        sql = slot_ddl(slot, version=version, in_recovery=in_recovery)
        with suppress(LeasecacheError):  # without the primary's help it takes until that writes the record by itself
            primary = find_primary(dsn, None)
            if primary is not None:
                with connect(primary) as there:
                    create_on_standby(source, there, sql)
        if not ask(source, _SLOT, slot):
            execute(source, sql)


class Arrival:
    """Tells when every reader shows whatever had been committed before a position of the log."""

    def __init__(self, dsns: Sequence[str], position: int) -> None:
        """Connect to every reader. Raises SourceError when one is away."""
        self._position = format_lsn(position)
        self._stack = ExitStack()
        with ExitStack() as opening:
            self._readers = [(address(dsn), opening.enter_context(connect(dsn))) for dsn in dsns]
            self._stack = opening.pop_all()
        self._unsettled: dict[str, dict[int, float]] = {}  # of a primary: transaction → when it was seen first

    def missing(self) -> str | None:
        """Return the first reader that does not show all of it, None when all do. Raises SourceError."""
        return next((name for name, connection in self._readers if not self._shows(name, connection)), None)

    def close(self) -> None:
        """Close the connections."""
        self._stack.close()

    def _shows(self, name: str, connection: Connection) -> bool:
        ((in_recovery, reached),) = ask(connection, _STATE, self._position)
        return bool(reached) if in_recovery else self._is_settled(name, connection)

    def _is_settled(self, name: str, connection: Connection) -> bool:
        """Tell whether none of those that run at a primary can have committed before the first look.

        Between the flush of its commit and its being visible, a transaction waits for nothing but standbys.
        """
        if name not in self._unsettled:
            ask(connection, _LATER)
        now = time.monotonic()
        running = {int(xid) for (xid,) in ask(connection, _RUNNING)}
        committing = {int(xid) for (xid,) in ask(connection, _COMMITTING)}
        first = self._unsettled.setdefault(name, dict.fromkeys(running, now))
        left = {xid: now if xid in committing else since for xid, since in first.items() if xid in running}
        self._unsettled[name] = left
        return all(now - since >= SETTLED for since in left.values())


def await_arrival(dsns: Sequence[str], position: int, rest: Callable[[float], bool]) -> bool:
    """Wait until every reader shows what was committed before `position`; False when `rest` says to stop.

    `rest` waits for s and tells whether to go on. Raises SourceError when a reader is away.
    """
    arrival = Arrival(dsns, position)
    try:
        while arrival.missing() is not None:
            if not rest(0.05):
                return False
        return True
    finally:
        arrival.close()
