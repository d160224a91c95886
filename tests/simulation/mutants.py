"""Guards taken out one at a time, to see that simulations without them fail."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from leasecache.invalidation import daemon, dispatch, follow, gate, keeper, mailbox, reader, recovery
from tests.simulation import clients, nodes
from tests.simulation.database import COMMIT_BYTES
from tests.simulation.world import Plan, World

Patch = tuple[Any, str, Any]


def _acknowledge_early() -> list[Patch]:
    return [(dispatch.Dispatcher, "acknowledged", property(lambda self: self._position))]


def _let_everything_pass() -> list[Patch]:
    return [(gate.View, "hides", lambda self, xids, end_lsn: ())]


def _compare_positions_on_a_primary() -> list[Patch]:
    """What has been received has been written, so its position is always behind the primary's."""

    def hides(self: gate.Answer, xids: tuple[int, ...], end_lsn: int) -> tuple[int, ...]:
        return xids if self.in_recovery and not self.reaches(end_lsn) else ()

    return [(gate.Answer, "hides", hides)]


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
                box.keeper.generation = box.keeper.write(math.inf, new=True).generation
        return open_session(self)

    def recovered(self: Any) -> None:
        with mock.patch.object(dispatch.Dispatcher, "bump"):
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


def _look_at_the_snapshot_alone() -> list[Patch]:
    """The youngest of those that run stand in no snapshot's list."""
    return [(recovery, "_LATER", "select pg_is_in_recovery()")]


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


class Mutant(NamedTuple):
    """What is taken out, and where it is found soonest."""

    take_out: Callable[[], list[Patch]]
    plan: Plan = Plan()
    within: int = 60  # simulations


_HELD = Plan(topology="primary", faults=("hold_commits",), seconds=8)
_AWAY = Plan(topology="primary", faults=("cut_node_from_daemon",), seconds=30, journal=1.0, guard_ttl=20.0)

MUTANTS: dict[str, Mutant] = {
    "ack-early": Mutant(_acknowledge_early),
    "no-gate": Mutant(_let_everything_pass, _HELD),
    "gate-by-position": Mutant(_compare_positions_on_a_primary, _HELD),
    "ack-commit-lsn": Mutant(_acknowledge_the_commit_record),
    "generation-before-slot": Mutant(
        _renew_before_the_slot, Plan(topology="primary", faults=("lose_slot",), seconds=8), 100
    ),
    "generation-before-gate": Mutant(
        _renew_before_the_gate, Plan(topology="replay", faults=("lose_slot", "delay_replay"), seconds=8), 100
    ),
    "snapshot-alone": Mutant(
        _look_at_the_snapshot_alone, Plan(topology="primary", faults=("lose_slot", "hold_commits"), seconds=8)
    ),
    "no-wait-for-expiry": Mutant(_pass_without_waiting, _AWAY),
    "incarnation-ignored": Mutant(
        _ignore_incarnations,
        Plan(topology="standby", faults=("crash_standby",), seconds=8, loses_slots=False, journal=1.0),
        150,
    ),
    "record-not-read-again": Mutant(_trust_the_generation_of_before, Plan(faults=("clear",), seconds=20)),
    "record-unjudged": Mutant(_believe_any_record),
    "generation-unchecked": Mutant(_fill_under_a_later_generation),
    "fill-without-token": Mutant(_fill_without_a_token),
}


def search(name: str, first: int, most: int | None = None) -> int | None:
    """Return the first seed from `first` on at which a simulation without the guard fails; None = within the bound."""
    mutant = MUTANTS[name]
    with mutated(name):
        for seed in range(first, first + (most or mutant.within)):
            if World(seed, mutant.plan).run().fault is not None:
                return seed
    return None


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """Take a guard out for a while; None takes out nothing."""
    with ExitStack() as stack:
        for owner, attribute, value in MUTANTS[name].take_out() if name is not None else ():
            stack.enter_context(mock.patch.object(owner, attribute, value, create=True))
        yield
