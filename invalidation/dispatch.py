"""Invalidation on every node at once, and the position W up to which all of them have acknowledged.

Each node has a mailbox; the owners of a key, one per ring, get it. A node that fails keeps its keys and is tried again
with back-off, or has them in its journal; the others go on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leasecache.errors import SourceError
from leasecache.guard import function_marks, guard_key, pulse_key
from leasecache.invalidation.journal import MIB, Journal, JournalError, Position
from leasecache.invalidation.keeper import Charter, Keeper, fresh_number
from leasecache.invalidation.mailbox import Mailbox, Naming, Observer
from leasecache.rules import RuleSet
from leasecache.stores.base import Node

VOUCHED_FOR = 10.0  # s after which it must be shown anew that the slot is ours


class Ring(Protocol):
    """Which node owns a key: the part of a store that dispatch needs."""

    @property
    def nodes(self) -> Sequence[Node]:
        """Return every node."""
        ...

    @property
    def mark(self) -> bytes:
        """Return what the guard record calls this ring."""
        ...

    def node_for(self, key: bytes) -> Node:
        """Return the node that owns `key`."""
        ...


class Poll(Protocol):
    """A `select.poll` object."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Wait for a descriptor as well."""
        ...


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How nodes are told and what is promised for them."""

    naming: Naming
    guard_ttl: float  # s, 0 = records do not run out, and no node is passed while it is away
    journal: Path | None = None  # directory; None = no node is passed while it is away
    journal_limit: int = 256  # MiB per node
    others: tuple[str, ...] = ()  # slots of the other daemons that the same nodes are vouched for by


class Dispatcher:
    """The mailboxes of all nodes."""

    def __init__(
        self,
        rings: Sequence[Ring],
        rules: RuleSet,
        terms: Terms,
        observer: Observer,
        wake: Callable[[], None],
        slot: str = "",
        readers: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`readers` returns a number that is another one when a reader may have gone back in time, None = unknown.

        Raises ConfigError when the journal's directory cannot be made.
        """
        self._rings = tuple(rings)
        self._rules = rules
        self._terms = terms
        self._observer = observer
        self._wake = wake
        self._slot = slot
        self._journal = _journal(terms, slot)
        self._readers = readers
        self._system = ""
        self._tables: str | None = None  # digest of what is known of the tables
        self._reported = 0
        self._vouched_until = 0.0  # monotonic s
        self._position = 0
        self._mailboxes: dict[str, Mailbox] = {}
        if self._journal is None:
            self._open_mailboxes()

    @property
    def acknowledged(self) -> int:
        """The position W: everything before it has been acknowledged by every node that owns a key of it."""
        return min([box.acknowledged for box in self._mailboxes.values()], default=self._position)

    def __len__(self) -> int:
        """Return how many keys are in memory and not acknowledged."""
        return sum(map(len, self._mailboxes.values()))

    def knows(self, system: str, confirmed: int, tables: Mapping[str, str] | None = None) -> bool:
        """Tell whether nobody else can have moved the slot, confirmed up to a position, since we last reported.

        And whether the tables are what they were then: what happened to them meanwhile may not be in the stream.
        Raises SourceError while another daemon uses the journal.
        """
        if self._mailboxes and self._system:
            return system == self._system and confirmed <= self._reported
        saved = None if self._journal is None else self._journal.open()
        if self._journal is None or saved is None or saved.readers is None or saved.readers != self._readers():
            return False
        if not self._journal.stands_on(saved, tables):
            return False
        self._tables = saved.tables
        return saved.system == system and confirmed <= saved.acknowledged

    def begin(self, system: str, confirmed: int, now: float, *, known: bool) -> None:
        """Begin a conversation over our slot, confirmed up to a position: everything behind it is repeated.

        Keys that no node has acknowledged stay. Unless all is `known` since then, every node gets a new generation.
        """
        if not self._mailboxes:
            self._open_mailboxes(known=known)
        self._system, self._reported, self._position = system, confirmed, 0
        tenure = fresh_number()
        for box in self._mailboxes.values():
            box.restart()
            if box.keeper is not None:
                box.keeper.begin(tenure, now, known=known)

    def confirm(self) -> int:
        """Return W to be reported, noted on disk before if there is a journal; the last one that was, if that fails."""
        position = max(self._reported, self.acknowledged)
        if self._journal is None:
            self._reported = position
            return position
        standing = self._standing(position)
        if position == self._reported and standing.readers is None:
            return position  # what was saved says more, as long as it holds
        try:
            self._journal.save(standing)
            self._reported = position
        except JournalError as error:
            self._observer.journal_failed("*", error)
        return self._reported

    def _standing(self, position: int) -> Position:
        owed = any(box.renews for box in self._mailboxes.values())  # to readers that went back: not to be forgotten
        return Position(self._system, position, None if owed else self._readers(), self._tables)

    def stand_on(self, tables: Mapping[str, str]) -> None:
        """Note what is known of the tables, once whatever was lost around it has been dealt with."""
        if self._journal is not None:
            try:
                self._tables = self._journal.note_tables(tables)
                standing = self._standing(self._reported)
                if standing.readers is not None:  # else what was saved says more, as long as it holds
                    self._journal.save(standing)
            except JournalError as error:
                self._observer.journal_failed("*", error)

    def doubt(self) -> None:
        """Note on disk that changes may be missing: until there are new generations, its finder knows nothing."""
        if self._journal is not None and self._system:
            try:
                self._journal.save(Position(self._system, self._reported, None))
            except JournalError as error:
                self._observer.journal_failed("*", error)

    def put(self, keys: dict[bytes, float], explicit: dict[bytes, float] | None = None) -> None:
        """Hand over keys of a visible transaction, each with the s it may be served stale.

        `explicit` keys are those that the application has named, whatever functions they belong to.
        """
        for ring in self._rings:
            if len(ring.nodes) == 1:
                self._mailboxes[ring.nodes[0].name].put(keys)
            else:
                for node, owned in _owned(ring, keys).items():
                    self._mailboxes[node].put(owned)
            for node, owned in _owned(ring, explicit or {}).items():
                self._mailboxes[node].put_explicit(owned)

    def bump(self, reason: str) -> None:
        """Let every node have a new generation before any position advanced from now on is acknowledged."""
        self._observer.bumped(reason)
        for box in self._mailboxes.values():
            box.renew()

    def serve(self, rules: RuleSet) -> None:
        """Vouch for the functions of these rules only."""
        if rules != self._rules:
            self._rules = rules
            for box in self._mailboxes.values():
                if box.keeper is not None:
                    box.keeper.charter = self._charter(box.node)

    def advance(self, position: int) -> None:
        """Note that the keys of every transaction before `position` have been put."""
        self._position = max(self._position, position)
        for box in self._mailboxes.values():
            box.advance(position)

    def vouch(self, at: float) -> None:
        """Note that the slot was ours at a time (monotonic s): records may be written for a while."""
        self._vouched_until = max(self._vouched_until, at + VOUCHED_FOR)

    def disown(self) -> None:
        """Note that the slot may be somebody else's by now: no record is written before the next `vouch`."""
        self._vouched_until = 0.0

    def step(self, now: float) -> None:
        """Collect what the nodes have answered and begin what can be begun. Call it whenever `wake` was called."""
        for box in self._mailboxes.values():
            box.step(now, self._observer, vouched_until=self._vouched_until)

    def next_due(self, now: float) -> float | None:
        """Return the seconds until `step` has something to do that no wake announces, None when there is nothing."""
        vouched = now < self._vouched_until
        times = [at for box in self._mailboxes.values() if (at := box.due_at(vouched)) is not None]
        return max(0.0, min(times) - now) if times else None

    def watch(self, poll: Poll) -> None:
        """Let `poll` wake when `step` has something to do because of a socket."""
        for box in self._mailboxes.values():
            if (errand := box.errand) is not None:
                poll.register(errand.socket, errand.events)

    def close(self) -> None:
        """Stop every thread, and let another daemon have the journal."""
        for box in self._mailboxes.values():
            box.close()
        if self._journal is not None:
            self._journal.close()

    def _open_mailboxes(self, *, known: bool = False) -> None:
        nodes = {node.name: node for ring in self._rings for node in ring.nodes}
        mailboxes: dict[str, Mailbox] = {}
        try:
            if self._journal is not None:
                self._journal.forget_all_but(nodes)
            for name, node in nodes.items():
                mailboxes[name] = self._open_mailbox(node, known)
        except JournalError as error:
            for box in mailboxes.values():
                box.close()
            raise SourceError(str(error)) from None
        self._mailboxes = mailboxes

    def _open_mailbox(self, node: Node, known: bool) -> Mailbox:
        guarded = self._terms.naming.guarded
        journal = None if self._journal is None else self._journal.of(node.name, voidable=guarded)
        keeper = Keeper(node, self._charter(node)) if guarded else None
        if keeper is not None and known and journal is not None and not journal.void:
            keeper.resume(journal.standing)
        return Mailbox(node, self._wake, self._terms.naming, keeper, journal)

    def _charter(self, node: Node) -> Charter:
        namespace = self._rules.namespace
        return Charter(
            key=guard_key(namespace),
            ttl=self._terms.guard_ttl,
            rings=frozenset(ring.mark for ring in self._rings if node.name in {other.name for other in ring.nodes}),
            rules=function_marks(self._rules.rules),
            pulse=pulse_key(namespace, self._slot) if self._terms.others else None,
            others=tuple(pulse_key(namespace, other) for other in self._terms.others),
        )


def _journal(terms: Terms, slot: str) -> Journal | None:
    if terms.journal is None or not terms.guard_ttl:
        return None
    return Journal(terms.journal, slot, terms.journal_limit * MIB)


def _owned(ring: Ring, keys: dict[bytes, float]) -> dict[str, dict[bytes, float]]:
    owned: dict[str, dict[bytes, float]] = {}
    for key, stale_for in keys.items():
        owned.setdefault(ring.node_for(key).name, {})[key] = stale_for
    return owned
