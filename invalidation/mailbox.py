"""What one node still has to be told, and the thread that tells it.

One job at a time: a batch of keys, the guard record, or what the journal holds from a time when the node was away.
While a job is under way further keys pile up and are de-duplicated, so a busy node gets large pipelines and an idle one
gets a transaction at once. All bookkeeping is done by the caller's thread; and where the node can be told keys without
waiting, as an errand, so is that: two changes of threads take longer than the exchange.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from leasecache.errors import ConfigError, GuardError, NodeError
from leasecache.guard import LONGEST, Record, wire_key
from leasecache.invalidation.journal import Entries, JournalError, NodeJournal, Standing
from leasecache.invalidation.keeper import Keeper, Written
from leasecache.invalidation.parcel import Parcel
from leasecache.invalidation.walker import merge, name
from leasecache.stores.base import Node
from leasecache.stores.errand import Errand

BATCH_KEYS = 5_000  # per pipeline, so that one stays well within a node's time limit
ERRAND_KEYS = 2_500  # of which the caller's thread makes a request; more are made beside it
RETRY_FIRST, RETRY_MOST = 0.05, 1.0  # s
JOURNAL_AFTER = 5.0  # s a node may be away before its keys go to the journal
JOURNAL_EVERY = 1.0  # s between two entries


class Observer(Protocol):
    """Who wants to know how the nodes are doing."""

    def invalidated(self, node: str, keys: int) -> None:
        """Note that a node has acknowledged `keys` keys."""
        ...

    def node_failed(self, node: str, error: NodeError) -> None:
        """Note that a node has not acknowledged a batch."""
        ...

    def node_recovered(self, node: str) -> None:
        """Note that a node answers again."""
        ...

    def guarded(self, node: str, state: str, generation: int | None) -> None:
        """Note what became of a node's guard record."""
        ...

    def journaled(self, node: str, keys: int, size_bytes: int) -> None:
        """Note what a node's journal holds."""
        ...

    def bumped(self, reason: str) -> None:
        """Note that every node is to have a new generation."""
        ...

    def journal_failed(self, node: str, error: Exception) -> None:
        """Note that a node's journal cannot be written."""
        ...


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What keys are called on the nodes: by their generation, as they are, or both."""

    guarded: bool = True  # some functions are
    unguarded: bool = True  # some functions are not


class Mailbox:
    """What one node still has to be told."""

    def __init__(
        self,
        node: Node,
        wake: Callable[[], None],
        naming: Naming,
        keeper: Keeper | None = None,
        journal: NodeJournal | None = None,
    ) -> None:
        """Without a `keeper` no record is written; without a `journal` an absent node holds W back."""
        self.node = node
        self.acknowledged = 0  # everything before this position is done
        self.keeper = keeper
        self._journal = journal
        self._wake = wake
        self._naming = naming
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"leasecache-{node.name}")
        self._waiting = Parcel()
        self._sending = Parcel()
        self._batch = Parcel()
        self._job: Future[Any] | Errand | None = None
        self._errand: Errand | None = None  # the job, if it is one
        self._begin: Callable[[bytes | None, list[bytes]], Errand | None] | None
        self._begin = getattr(node, "begin_invalidation", None)
        self._read: tuple[int, bytes | None] | None = None  # a generation, and the record that says the same
        self._under: int | None = None  # the generation that the last errand's keys were called by
        self._done: Callable[[Any, float, Observer], None] = self._sent
        self._failing_since: float | None = None  # monotonic s
        self._delay = 0.0  # s before the next attempt, 0 = the last one succeeded
        self._retry_at = 0.0  # monotonic s
        self._journal_at = 0.0  # monotonic s of the next entry
        self._journaled = 0  # everything before this position is in the journal
        self._met = False  # the node has answered once
        self._unnoted = False  # the journal does not have the generation that the node has

    def __len__(self) -> int:
        """Return how many keys are in memory and not acknowledged."""
        return sum([len(each.keys) + len(each.explicit) for each in (self._waiting, self._sending, self._batch)])

    @property
    def renews(self) -> bool:
        """Whether a new generation is still to be written."""
        return self._waiting.renews or self._sending.renews or self._unknown

    @property
    def _unknown(self) -> bool:
        """Whether the generation that clients believe may be one that has missed something."""
        return self.keeper is not None and self.keeper.generation is None

    def due_at(self, vouched: bool) -> float | None:
        """Return when (monotonic s) something is to be done that no wake announces; None = nothing."""
        if self._job is not None:
            return None if self._errand is None else self._errand.until
        times = [self._retry_at] if self._delay and (vouched or self._sends) else []
        if self._journals or (self._unnoted and not self._unknown):
            times.append(self._journal_at)
        if self.keeper is not None and vouched:
            times.append(max(self.keeper.due_at, self._retry_at))
        return min(times, default=None)

    @property
    def _sends(self) -> bool:
        """Whether there are keys that the node can be told while no record may be written."""
        if self._journal is not None and len(self._journal):
            return True
        waiting = len(self._sending) or (len(self._waiting) and not self._sending.renews)
        return bool(waiting) and not self._unknown

    @property
    def errand(self) -> Errand | None:
        """What of this waits for a socket; `step` goes on with it."""
        return self._errand

    def put(self, keys: dict[bytes, float]) -> None:
        """Add keys; of several wishes for one key the strictest holds."""
        merge(self._waiting.keys, keys)

    def put_explicit(self, keys: dict[bytes, float]) -> None:
        """Add keys of functions that need not be among those of the rules."""
        merge(self._waiting.explicit, keys)

    def renew(self) -> None:
        """Let the node have a new generation before any later position is acknowledged."""
        self._waiting.renews = self.keeper is not None

    def advance(self, position: int) -> None:
        """Note that every key of the log before `position` has been put."""
        self._waiting.position = max(self._waiting.position, position)
        self._settle()

    def step(self, now: float, observer: Observer, *, vouched_until: float) -> None:
        """Collect a finished job and begin the next one; the slot is ours, and records may be written, until then.

        Raises what a node raised, unless it is a NodeError, or says of a node that was in order what is wrong with it.
        """
        if self._errand is not None:
            self._errand.attend(now)
        if self._job is not None and self._job.done():
            self._collect(self._job, now, observer)
        if self._unnoted and now >= self._journal_at and self.keeper is not None and self.keeper.generation is not None:
            self._note(now, observer)
            self._settle()
        if self._job is None and self._journals and now >= self._journal_at:
            self._write_journal(now, observer)
        if self._job is None and now >= self._retry_at:
            try:
                self._submit(now, vouched_until)
            except JournalError as error:  # what this node has missed cannot be read; the other nodes go on
                self._retry_at = now + JOURNAL_EVERY
                observer.journal_failed(self.node.name, error)

    def restart(self) -> None:
        """Forget positions and keep keys: a new stream repeats the rest, perhaps on another timeline."""
        self.acknowledged = self._journaled = 0
        for parcel in (self._waiting, self._sending, self._batch):
            parcel.position = 0

    def close(self) -> None:
        """Stop the thread once its job is over; nothing new is begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._errand is not None:
            self._errand.close()
        if self._journal is not None:
            self._journal.close()

    def _collect(self, job: "Future[Any] | Errand", now: float, observer: Observer) -> None:
        errand, self._job, self._errand = self._errand, None, None
        if errand is not None and errand.lost:  # its connection had died unnoticed: another one, in the thread
            self._run(self._sent, self._send, self._batch, self._under)
            return
        error = job.exception()
        if error is None:
            self._met = True
            if self._failing_since is not None:
                self._failing_since, self._delay = None, 0.0
                observer.node_recovered(self.node.name)
            self._done(job.result(), now, observer)
            self._settle()
            return
        if self.keeper is not None and isinstance(error, GuardError):
            self.keeper.miss()
        self._sending.add(self._batch)
        self._batch = Parcel()
        self._delay = min(max(self._delay * 2, RETRY_FIRST), RETRY_MOST)
        self._retry_at = now + self._delay
        if self._met and isinstance(error, ConfigError):  # replaced by another version, or its password has changed
            error = NodeError(str(error))
        if not isinstance(error, NodeError):
            raise error
        if self._failing_since is None:
            self._failing_since = self._journal_at = now
            self._journal_at += JOURNAL_AFTER
        observer.node_failed(self.node.name, error)

    def _submit(self, now: float, vouched_until: float) -> None:
        keeper, vouched = self.keeper, now < vouched_until
        if self._journal is not None and len(self._journal):
            self._run(self._replayed, self._replay, self._journal.entries(BATCH_KEYS))
            return
        void = self._journal is not None and self._journal.void
        if keeper is not None and (void or keeper.generation is None or keeper.is_due(now)):
            if vouched:
                self._run(self._kept, keeper.write, vouched_until, new=void)
                return
            if keeper.generation is None:
                return  # what guarded keys are called is not known yet
        if not len(self._sending) and not self._sending.renews:
            self._sending, self._waiting = self._waiting, Parcel(position=self._waiting.position)
        if len(self._sending):
            self._batch = self._sending.take(BATCH_KEYS)
            self._tell(None if keeper is None else keeper.generation)
        elif self._sending.renews and keeper is not None and vouched:
            self._run(self._renewed, keeper.write, vouched_until, new=True)

    def _run(
        self, done: Callable[[Any, float, Observer], None], job: Callable[..., Any], *args: Any, **more: Any
    ) -> None:
        self._done = done
        self._job = future = self._pool.submit(job, *args, **more)
        future.add_done_callback(lambda _: self._wake())

    def _tell(self, generation: int | None) -> None:
        """Tell the node the batch: as an errand if it can be one."""
        self._under, self._errand = generation, self._set_out(generation)
        if self._errand is None:
            self._run(self._sent, self._send, self._batch, generation)
        else:
            self._job, self._done = self._errand, self._told

    def _set_out(self, generation: int | None) -> Errand | None:
        if self._begin is None or len(self._batch) > ERRAND_KEYS:
            return None
        groups = self._called(self._batch, generation)
        if max(groups) >= 1:  # what is to be left stale is looked at first
            return None
        names = [one for group in groups.values() for one in group]
        return self._begin(None if self.keeper is None else self.keeper.key, names)

    def _told(self, raw: bytes | None, now: float, observer: Observer) -> None:
        self._sent((self._under, raw), now, observer)

    def _sent(self, found: "tuple[int | None, bytes | None]", now: float, observer: Observer) -> None:
        if self._moved(*found, observer):
            self._sending.add(self._batch)
            self._note(now, observer)
        else:
            observer.invalidated(self.node.name, len(self._batch))
        self._batch = Parcel()

    def _moved(self, used: int | None, raw: bytes | None, observer: Observer) -> bool:
        """Tell whether somebody has renewed the generation meanwhile, so that what was sent may have missed."""
        if self.keeper is None or used is None:
            return False
        if raw is not None and self._read == (used, raw):
            return False
        record = None if raw is None else Record.from_bytes(raw)
        if record is not None and record.generation == used:
            self._read = used, raw
            return False
        self.keeper.miss()
        observer.guarded(self.node.name, "absent" if record is None else "foreign", used)
        if record is None:
            return False
        known = self.keeper.generation is not None and self.keeper.owns(record)  # else it is to be a new one
        self.keeper.generation = record.generation if known else None
        return True

    def _kept(self, written: Written | None, now: float, observer: Observer) -> None:
        if self.keeper is None or written is None:
            return
        self.keeper.wrote(written, now)
        self._note(now, observer)
        observer.guarded(self.node.name, "fresh", written.generation)

    def _note(self, now: float, observer: Observer) -> None:
        """Note the generation in the journal. While that fails W stays, so that the next process begins before it."""
        keeper = self.keeper
        if self._journal is None or keeper is None or keeper.generation is None or keeper.run is None:
            return
        self._journal_at = now + JOURNAL_EVERY
        try:
            self._journal.keep(Standing(keeper.generation, keeper.run, keeper.charter.marks))
            self._unnoted = False
        except JournalError as error:
            self._unnoted = True
            observer.journal_failed(self.node.name, error)

    def _renewed(self, written: Written | None, now: float, observer: Observer) -> None:
        self._sending.renews = written is None
        self._kept(written, now, observer)

    def _replayed(self, found: "tuple[Entries, int | None, bytes | None]", now: float, observer: Observer) -> None:
        assert self._journal is not None
        entries, used, raw = found
        if self._moved(used, raw, observer):
            return  # once more, under the new one
        try:
            self._journal.drop(entries)
        except JournalError as error:  # the next process tells them once more
            observer.journal_failed(self.node.name, error)
        observer.invalidated(self.node.name, len(entries))
        observer.journaled(self.node.name, len(self._journal), self._journal.size)

    def _send(self, parcel: Parcel, generation: int | None) -> "tuple[int | None, bytes | None]":
        raw = None
        for stale_for, names in self._called(parcel, generation).items():
            raw = self._invalidate(names, stale_for)
        return generation, raw

    def _called(self, parcel: Parcel, generation: int | None) -> dict[float, list[bytes]]:
        """Return what the keys are called on the node, by the s they may be served stale."""
        groups: dict[float, list[bytes]] = {}
        prefix = None if generation is None else wire_key(generation, b"")
        name(groups, parcel.keys, prefix, self._naming.unguarded or generation is None)
        name(groups, parcel.explicit, prefix, True)
        return groups

    def _replay(self, entries: Entries) -> "tuple[Entries, int | None, bytes | None]":
        generation = None if self.keeper is None else self.keeper.generation
        raw = self._invalidate([one for key in entries.keys for one in self._names(key, generation)], 0)
        return entries, generation, raw

    def _invalidate(self, names: list[bytes], stale_for: float) -> bytes | None:
        if self.keeper is None:
            self.node.invalidate(names, stale_for)
            return None
        return self.node.invalidate_under(self.keeper.key, names, stale_for)

    def _names(self, key: bytes, generation: int | None) -> list[bytes]:
        return [key] if generation is None or len(key) > LONGEST else [wire_key(generation, key), key]

    def _settle(self) -> None:
        if len(self._batch) or len(self._sending) or self._sending.renews or self._unnoted or self._owes:
            return
        empty = not len(self._waiting) and not self._waiting.renews
        settled = self._waiting.position if empty else self._sending.position
        self.acknowledged = max(self.acknowledged, settled)

    @property
    def _owes(self) -> bool:
        """Whether the node lacks what only `_write_journal` lets W pass: it may be believed, until its record ends."""
        if self.keeper is not None and time.monotonic() < self.keeper.haunted_until:
            return True
        return self._unknown or (self._journal is not None and (len(self._journal) > 0 or self._journal.void))

    @property
    def _journals(self) -> bool:
        return self._journal is not None and self._failing_since is not None

    def _write_journal(self, now: float, observer: Observer) -> None:
        """Move what waits into the journal; let W pass once no client can believe the node any more."""
        assert self._journal is not None
        self._journal_at = now + JOURNAL_EVERY
        parcels = (self._sending, self._waiting)
        try:
            for parcel in parcels:
                self._journal.append([*parcel.keys, *parcel.explicit], void=parcel.renews or self._unknown)
            self._journal.sync()
        except JournalError as error:
            observer.journal_failed(self.node.name, error)
            return
        self._journaled = self._waiting.position
        self._sending, self._waiting = Parcel(position=self._journaled), Parcel(position=self._journaled)
        observer.journaled(self.node.name, len(self._journal), self._journal.size)
        if self.keeper is None or now >= self.keeper.expired_at:
            self.acknowledged = max(self.acknowledged, self._journaled)
