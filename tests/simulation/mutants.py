"""Guards taken out one at a time, to see that simulations without them fail."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from leasecache.invalidation import daemon, dispatch, follow, gate, keeper, mailbox, reader
from leasecache.lease import Stored
from tests.simulation import clients, nodes
from tests.simulation.database import COMMIT_BYTES

Patch = tuple[Any, str, Any]


def _acknowledge_early() -> list[Patch]:
    return [(dispatch.Dispatcher, "acknowledged", property(lambda self: self._position))]


def _let_everything_pass() -> list[Patch]:
    return [(gate.View, "shows", lambda self, xid, end_lsn: True)]


def _compare_positions_on_a_primary() -> list[Patch]:
    """What has been received has been written, so its position is always behind the primary's."""

    def shows(self: gate.Answer, xid: int, end_lsn: int) -> bool:
        return not self.in_recovery or self.reaches(end_lsn)

    return [(gate.Answer, "shows", shows)]


def _acknowledge_the_commit_record() -> list[Patch]:
    take = follow.Follower._take

    def early(self: Any, event: Any, now: float) -> None:
        if hasattr(event, "end_lsn"):
            event = dataclasses.replace(event, end_lsn=event.end_lsn - COMMIT_BYTES)
        take(self, event, now)

    return [(follow.Follower, "_take", early)]


def _renew_before_the_slot() -> list[Patch]:
    """New generations, then the slot: what is committed in between is in neither."""
    recover, begin, open_session = daemon.Daemon._recover, dispatch.Dispatcher.begin, daemon.Daemon._open

    def opened(self: Any) -> Any:
        if self._gap is not None:
            for box in self._dispatcher._mailboxes.values():
                box.keeper.generation = box.keeper.write(new=True)
        return open_session(self)

    def recovered(self: Any) -> None:
        with mock.patch.object(dispatch.Dispatcher, "bump", lambda self, reason: None):
            recover(self)

    def begun(self: Any, *args: Any, known: bool) -> None:
        begin(self, *args, known=known or bool(self._mailboxes))

    return [
        (daemon.Daemon, "_open", opened),
        (daemon.Daemon, "_recover", recovered),
        (dispatch.Dispatcher, "begin", begun),
    ]


def _renew_before_the_gate() -> list[Patch]:
    return [(daemon.Daemon, "_arrive", lambda self, *args, **named: True)]


def _write_records_unconditionally() -> list[Patch]:
    def lease_set(self: Any, lease: Any, flags: int, body: bytes, ttl: float) -> Any:
        def put(engine: Any) -> Stored:
            now = engine._now()
            engine._put(lease.key, nodes.Item(flags, body, engine._next_cas(), now + ttl))
            return Stored()

        return self._one(put)

    return [(nodes.DaemonNode, "lease_set", lease_set)]


def _record_before_journal() -> list[Patch]:
    submit = mailbox.Mailbox._submit

    def hasty(self: Any, now: float, vouched_until: float) -> None:
        due = self.keeper.generation is not None and self.keeper.is_due(now)
        if self._journal is not None and len(self._journal) and due and now < vouched_until:
            self._run(self._kept, self.keeper.write, vouched_until)
        else:
            submit(self, now, vouched_until)

    return [(mailbox.Mailbox, "_submit", hasty)]


def _pass_without_waiting() -> list[Patch]:
    return [(keeper.Keeper, "expired_at", property(lambda self: 0.0))]


def _ignore_incarnations() -> list[Patch]:
    return [(reader.Reader, "rewound", property(lambda self: None, lambda self, why: None))]


def _trust_the_generation_of_before() -> list[Patch]:
    def sent(self: Any, found: Any, now: float, observer: Any) -> None:
        self._batch = mailbox.Parcel()

    return [(mailbox.Mailbox, "_sent", sent)]


def _believe_any_record() -> list[Patch]:
    def judged(self: Any, key: bytes, raw: bytes | None) -> Any:
        return None if raw is None else clients.Record.from_bytes(raw)

    return [(clients.Application, "_judged", judged)]


def _vouch_without_the_slot() -> list[Patch]:
    def step(self: Any, now: float) -> None:
        for box in self._mailboxes.values():
            box.step(now, self._observer, vouched_until=math.inf)

    return [(dispatch.Dispatcher, "step", step)]


def _fill_under_a_later_generation() -> list[Patch]:
    """A client that takes what it has won under one generation for a hit or lease of another."""

    def ask(self: Any, node: Any, key: bytes) -> Any:
        used = self._generations.get(node.name, 0)
        raw, answer = node.exchange(
            "clients", [nodes.look(self._guard), clients._lease_get(clients.wire_key(used, key))]
        )
        record = self._judged(key, raw)
        if record is None:
            return None, 0
        self._generations[node.name] = record.generation
        return answer, used

    return [(clients.Application, "_ask", ask)]


def _fill_without_a_token() -> list[Patch]:
    lease_set = nodes.MemoryStore.lease_set

    def careless(self: Any, lease: Any, flags: int, body: bytes, ttl: float) -> Any:
        item = self._items.get(lease.key)
        token = lease.token if item is None else lease.token._replace(cas=item.cas)
        return lease_set(self, lease._replace(token=token), flags, body, ttl)

    return [(nodes.MemoryStore, "lease_set", careless)]


MUTANTS: dict[str, Callable[[], list[Patch]]] = {
    "ack-early": _acknowledge_early,
    "no-gate": _let_everything_pass,
    "gate-by-position": _compare_positions_on_a_primary,
    "ack-commit-lsn": _acknowledge_the_commit_record,
    "generation-before-slot": _renew_before_the_slot,
    "generation-before-gate": _renew_before_the_gate,
    "record-unconditional": _write_records_unconditionally,
    "record-before-journal": _record_before_journal,
    "no-wait-for-expiry": _pass_without_waiting,
    "incarnation-ignored": _ignore_incarnations,
    "record-not-read-again": _trust_the_generation_of_before,
    "record-unjudged": _believe_any_record,
    "vouched-without-slot": _vouch_without_the_slot,
    "generation-unchecked": _fill_under_a_later_generation,
    "fill-without-token": _fill_without_a_token,
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """Take a guard out for a while; None takes out nothing."""
    with ExitStack() as stack:
        for owner, attribute, value in MUTANTS[name]() if name is not None else ():
            stack.enter_context(mock.patch.object(owner, attribute, value))
        yield
