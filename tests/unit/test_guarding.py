"""Guard records and journals of the daemon, on nodes in memory that can be away: who is vouched for, and when."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from leasecache.errors import ConfigError, NodeError, SourceError
from leasecache.guard import RECORD_FLAGS, Record, guard_key, pulse_key, wire_key
from leasecache.invalidation.dispatch import VOUCHED_FOR, Dispatcher, Terms
from leasecache.invalidation.keeper import CLOCK_SLACK, SUCCESSOR_WAIT
from leasecache.invalidation.mailbox import JOURNAL_AFTER, JOURNAL_EVERY, Naming
from leasecache.lease import Hit, Lease, Stored
from leasecache.rules import Rule, RuleSet
from leasecache.stores.memory import MemoryStore
from tests.unit.test_stream_dispatch import FakeRing, Notes

WITHIN = 10.0  # s
TTL = 60.0  # s
GUARD = guard_key("shop")


def rule(table: str) -> Rule:
    """Return a rule of a function of its own."""
    template, kinds = f"{table}:{{x}}", {"x": "int"}
    return Rule(
        function=f"get_{table}", template=template, kinds=kinds, schema="public", table=table, fields={"x": "id"}
    )


RULES = RuleSet(namespace="shop", rules=(rule("media"), rule("users")))


class GuardedNode(MemoryStore):
    """A store in memory that holds a guard record, can be away, and notes the order of what it was told."""

    def __init__(self, name: str = "a") -> None:
        super().__init__()
        self.name = name
        self.away = False
        self.run_id = "-"
        self.told: list[bytes] = []
        self.before_record: Callable[[], None] = lambda: None

    def run(self) -> str:
        """Return which run of the server this is."""
        self._check()
        return self.run_id

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Any:
        """Answer, unless it is away."""
        self._check()
        return super().lease_get(key, lease_for, refresh_ahead, mark)

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Any:
        """Store, unless it is away."""
        self._check()
        self.told.append(lease.key)
        return super().lease_set(lease, flags, body, ttl)

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:  # type: ignore[override]
        """Invalidate, and read the record after that."""
        self._check()
        self.told += keys
        self.invalidate(keys, stale_for)
        self.before_record()
        found = self.look(guard_key)
        return None if found is None else found.value

    def record(self) -> Record | None:
        """Return the record that stands."""
        found = self.look(GUARD)
        return None if found is None else Record.from_bytes(found.value)

    def write(self, record: Record) -> None:
        """Put a record in the place of the one that stands."""
        answer = self.lease_get(GUARD, 10)
        assert isinstance(answer, (Hit, Lease)), answer
        assert isinstance(self.lease_set(Lease(GUARD, answer.token), RECORD_FLAGS, record.to_bytes(), TTL), Stored)

    def _check(self) -> None:
        if self.away:
            raise NodeError("away")


class Desk:
    """A dispatcher of one node whose slot is ours, in a time of its own."""

    def __init__(self, journal: Path | None = None, naming: Naming | None = None, **terms: Any) -> None:
        self.node, self.notes, self.woken = GuardedNode(), Notes(), threading.Event()
        self.terms = Terms(naming=naming or Naming(), guard_ttl=TTL, journal=journal, **terms)
        self.now = time.monotonic()
        self.dispatcher = self.open()

    def open(self, confirmed: int = 0, readers: int | None = 1, system: str = "system") -> Dispatcher:
        """Begin as a new process does."""
        self.dispatcher = Dispatcher(
            [FakeRing(self.node)],
            RULES,
            self.terms,
            self.notes,
            self.woken.set,
            "slot",
            lambda: readers,  # type: ignore[arg-type]
        )
        known = self.dispatcher.knows(system, confirmed)
        self.dispatcher.begin(system, confirmed, self.now, known=known)
        return self.dispatcher

    def again(self, confirmed: int, **changes: Any) -> None:
        """End, and begin as another process."""
        self.dispatcher.close()
        self.open(confirmed, **changes)

    def step(self, seconds: float = 0.0, *, vouched: bool = True) -> None:
        """Let time pass, and the dispatcher do what is due until nothing is under way."""
        self.now += seconds
        if vouched:
            self.dispatcher.vouch(self.now)
        [box] = self.dispatcher._mailboxes.values()
        deadline = time.monotonic() + WITHIN
        while True:
            self.dispatcher.step(self.now)
            if box._future is None:
                return
            assert time.monotonic() < deadline
            self.woken.wait(0.01)
            self.woken.clear()

    def generation(self) -> int:
        """Return the generation that the node's record names."""
        record = self.node.record()
        assert record is not None
        return record.generation


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A dispatcher whose node has its first record."""
    made = Desk()
    made.step()
    yield made
    made.dispatcher.close()


@pytest.fixture
def journaling(tmp_path: Path) -> Iterator[Desk]:
    """The same with a journal."""
    made = Desk(tmp_path)
    made.step()
    made.dispatcher.advance(10)
    assert made.dispatcher.confirm() == 10
    yield made
    made.dispatcher.close()


def test_the_first_record_names_everything_that_is_served(desk: Desk) -> None:
    """A new daemon writes a record with a generation of its own, its rings and the marks of all functions."""
    record = desk.node.record()
    assert record is not None
    assert (record.rings, len(record.rules), record.run) == ({b"ring"}, 2, "-")


def test_no_record_without_the_slot() -> None:
    """Guard: `vouched`. A daemon that does not know that the slot is its own writes nothing and tells no node."""
    desk = Desk()
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(5)
    desk.step(vouched=False)
    assert (desk.node.told, desk.dispatcher.acknowledged) == ([], 0)
    desk.step()
    assert desk.dispatcher.acknowledged == 5
    desk.step(VOUCHED_FOR + TTL, vouched=False)
    written = desk.node.told.count(GUARD)
    desk.step(TTL, vouched=False)
    assert desk.node.told.count(GUARD) == written
    desk.dispatcher.close()


def test_renewed_every_quarter(desk: Desk) -> None:
    """The record is written again, with the same generation, before it runs out."""
    generation = desk.generation()
    for _ in range(8):
        desk.step(TTL / 4)
    assert (desk.generation(), desk.node.told.count(GUARD)) == (generation, 9)


def test_keys_go_under_their_generation(desk: Desk) -> None:
    """Where it is not said that all clients are guarded, keys go by both names."""
    generation = desk.generation()
    desk.dispatcher.put({b"a1": 0.0}, {b"a2": 0.0})
    desk.step()
    assert set(desk.node.told) - {GUARD} == {b"a1", b"a2", wire_key(generation, b"a1"), wire_key(generation, b"a2")}


@pytest.mark.parametrize(
    ("naming", "plain"),
    [(Naming(unguarded=False), {b"a2"}), (Naming(guarded=False), {b"a1", b"a2"})],
    ids=["all guarded", "none guarded"],
)
def test_names_by_who_is_guarded(naming: Naming, plain: set[bytes]) -> None:
    """With guarded clients alone only explicit keys go by their logical name, without any no others."""
    desk = Desk(naming=naming)
    desk.node.invalidate = lambda keys, stale_for=0: desk.node.told.extend(keys)  # type: ignore[method-assign]
    desk.dispatcher.put({b"a1": 0.0}, {b"a2": 0.0})
    desk.step()
    assert {key for key in desk.node.told if key.startswith(b"a")} == plain
    assert (GUARD in desk.node.told) == naming.guarded
    desk.dispatcher.close()


def test_another_generation_behind_a_batch(desk: Desk) -> None:
    """Guard: each batch brings the record. One that somebody renews meanwhile takes the keys again, before W moves."""
    old = desk.node.record()
    assert old is not None
    renewed = Record(generation=77, tenure=old.tenure, rings=old.rings, rules=old.rules)

    def renew() -> None:
        desk.node.before_record = lambda: None
        desk.node.write(renewed)

    desk.node.before_record = renew
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(5)
    desk.step()
    assert wire_key(77, b"a1") in desk.node.told
    assert (desk.dispatcher.acknowledged, desk.notes.seen["a foreign"]) == (5, 1)


@pytest.mark.parametrize("renewing", [False, True])
def test_a_generation_of_another_tenure(desk: Desk, renewing: bool) -> None:
    """Guard: `owns`. What another holder of the slot writes may have missed what we told, and is not taken over."""
    ours = desk.node.record()
    assert ours is not None
    desk.node.write(Record(generation=77, tenure=ours.tenure ^ 1, rings=ours.rings, rules=ours.rules))
    if renewing:
        desk.step(TTL)
    else:
        desk.dispatcher.put({b"a1": 0.0})
        desk.dispatcher.advance(5)
        desk.step()
        assert desk.dispatcher.acknowledged == 5
    assert desk.generation() not in (77, ours.generation)


def test_a_slot_that_may_be_lost(desk: Desk) -> None:
    """Guard: `disown`. After the conversation has ended no record is written until the slot is known to be ours."""
    MemoryStore.invalidate(desk.node, [GUARD])
    desk.dispatcher.disown()
    desk.dispatcher.put({b"a1": 0.0})  # whose batch finds that there is none
    desk.step(vouched=False)
    desk.step(1.0, vouched=False)
    assert desk.node.record() is None
    desk.step()
    assert desk.node.record() is not None


def test_what_a_journal_has_under_another_generation(journaling: Desk) -> None:
    """Guard: `_moved` behind a replay. A cache that was cleared while the node was away gets the keys under both."""
    desk = journaling
    old = desk.node.record()
    assert old is not None
    desk.node.away = True
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    for _ in range(8):
        desk.step(1.0)
    desk.node.away = False
    desk.node.write(Record(generation=77, tenure=old.tenure, rings=old.rings, rules=old.rules))
    desk.step(1.0)
    desk.step()
    assert wire_key(77, b"a1") in desk.node.told
    assert desk.dispatcher.acknowledged == 20


def test_a_journal_holds_w(journaling: Desk) -> None:
    """Guard: `_owes`. Positions without keys of a node do not pass what it has missed while it is believed."""
    desk = journaling
    desk.node.away = True
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    for _ in range(8):
        desk.step(1.0)
    desk.dispatcher.advance(30)
    assert desk.dispatcher.acknowledged == 10


def test_a_bump_comes_before_w(desk: Desk) -> None:
    """Guard: `_settle` waits for renewals. A position behind a bump is acknowledged once every node is renewed."""
    generation = desk.generation()
    desk.dispatcher.bump("truncate")
    desk.dispatcher.advance(5)
    desk.node.away = True
    desk.step()
    assert desk.dispatcher.acknowledged == 0
    desk.node.away = False
    desk.step(1.0)
    assert desk.dispatcher.acknowledged == 5
    assert desk.generation() != generation


def test_a_record_that_is_lost_comes_back(desk: Desk) -> None:
    """A node that lost its record, as by a restart, gets the same generation again: it has been told everything."""
    generation = desk.generation()
    MemoryStore.invalidate(desk.node, [GUARD])
    desk.dispatcher.put({b"a1": 0.0})
    desk.step()
    desk.step()
    assert (desk.generation(), desk.notes.seen["a absent"]) == (generation, 1)


def test_another_run_of_the_server(desk: Desk) -> None:
    """What a server has brought back from disk is as old as that: the generation is void."""
    generation = desk.generation()
    desk.node.run_id = "another"
    desk.step(TTL / 4)
    assert desk.generation() != generation


def test_less_is_served(desk: Desk) -> None:
    """Guard: `_choose` compares rules. A function that is served no more costs the generation, one more does not."""
    generation = desk.generation()
    desk.dispatcher.serve(RuleSet(namespace="shop", rules=RULES.rules[:1]))
    desk.step()
    shrunk = desk.generation()
    desk.dispatcher.serve(RULES)
    desk.step()
    record = desk.node.record()
    assert record is not None
    assert (shrunk != generation, record.generation == shrunk, len(record.rules)) == (True, True, 2)


def test_another_process_without_a_journal(desk: Desk) -> None:
    """Guard: `knows`. Nobody can tell what became of the slot in between, so every node gets a new generation."""
    generation = desk.generation()
    desk.again(confirmed=0)
    desk.step()
    assert desk.generation() != generation


def test_the_same_process_goes_on(desk: Desk) -> None:
    """A conversation that ends costs no generation, unless somebody else has moved the slot meanwhile."""
    generation = desk.generation()
    desk.dispatcher.advance(50)
    desk.dispatcher.confirm()
    assert desk.dispatcher.knows("system", 50)
    assert not desk.dispatcher.knows("system", 51)
    assert not desk.dispatcher.knows("another", 50)
    desk.dispatcher.begin("system", 50, desk.now, known=True)
    desk.step()
    assert desk.generation() == generation


@pytest.mark.parametrize(
    ("confirmed", "changes", "kept"),
    [
        (10, {}, True),
        (9, {}, True),
        (11, {}, False),
        (10, {"readers": 2}, False),
        (10, {"readers": None}, False),
        (10, {"system": "another"}, False),
    ],
    ids=["as reported", "report lost", "slot moved", "reader restarted", "reader away", "another cluster"],
)
def test_another_process_with_the_journal(
    journaling: Desk, confirmed: int, changes: dict[str, Any], kept: bool
) -> None:
    """A process that finds the journal goes on with the generations, if nothing has happened meanwhile."""
    generation = journaling.generation()
    journaling.again(confirmed, **changes)
    journaling.step()
    assert (journaling.generation() == generation) is kept


def test_a_generation_that_was_owed(journaling: Desk) -> None:
    """A process that ends before a new generation is written leaves it to the next one.

    Guard: what readers show is noted as unknown while a generation is owed for it.
    """
    before = journaling.generation()
    journaling.dispatcher.advance(20)
    journaling.step()
    journaling.dispatcher.bump("a reader went back in time")
    assert journaling.dispatcher.confirm() == 20
    journaling.again(20)
    journaling.step()
    assert journaling.generation() != before


def test_w_passes_an_absent_node(journaling: Desk) -> None:
    """Guards: journal before W, the wait until no record can be alive, on return the keys before the record."""
    desk = journaling
    generation = desk.generation()
    sent_at = desk.now
    desk.node.away = True
    desk.dispatcher.put({b"a1": 30.0})
    desk.dispatcher.advance(20)
    desk.step()
    assert desk.dispatcher.acknowledged == 10
    desk.step(JOURNAL_AFTER)
    assert (desk.notes.seen["a journal"], len(desk.dispatcher)) == (1, 0)
    assert desk.dispatcher.acknowledged == 10
    expired = sent_at + 2 * CLOCK_SLACK * TTL + SUCCESSOR_WAIT
    while desk.now + 2 < expired:
        desk.step(min(JOURNAL_EVERY * 20, expired - desk.now - 1))
        assert desk.dispatcher.acknowledged == 10
    desk.step(JOURNAL_EVERY + 2)
    assert desk.dispatcher.acknowledged == 20
    desk.node.told.clear()
    desk.node.away = False
    desk.dispatcher.put({b"a2": 0.0})
    desk.dispatcher.advance(30)
    desk.step(1.0)
    first = [key for key in desk.node.told if key != GUARD][:2]
    assert set(first) == {wire_key(generation, b"a1"), b"a1"}
    assert desk.node.told.index(GUARD) >= 2
    assert (desk.generation(), desk.dispatcher.acknowledged, desk.notes.seen["a journal"]) == (generation, 30, 0)


def test_a_process_ends_while_a_node_is_away(journaling: Desk) -> None:
    """The keys of the journal are told by the next process, before it writes a record."""
    desk = journaling
    generation = desk.generation()
    desk.node.away = True
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    desk.step()
    desk.step(JOURNAL_AFTER)
    desk.again(confirmed=10)
    desk.node.away = False
    desk.node.told.clear()
    desk.step()
    assert set(desk.node.told[:2]) == {wire_key(generation, b"a1"), b"a1"}
    assert desk.generation() == generation


@pytest.mark.parametrize("how", ["limit", "bump", "corrupt"])
def test_a_journal_that_says_too_little(tmp_path: Path, how: str) -> None:
    """Over its limit, at a bump and when it cannot be read, the node's generation is void and a new one follows."""
    desk = Desk(tmp_path, journal_limit=1)
    desk.step()
    desk.dispatcher.advance(10)
    desk.dispatcher.confirm()
    generation = desk.generation()
    desk.node.away = True
    keys = {b"a%060d" % i: 0.0 for i in range(20_000 if how == "limit" else 1)}
    desk.dispatcher.put(keys)
    if how == "bump":
        desk.dispatcher.bump("truncate")
    desk.dispatcher.advance(20)
    desk.step()
    desk.step(JOURNAL_AFTER)
    if how == "corrupt":
        desk.dispatcher.close()
        [path] = (tmp_path / "slot").glob("*.journal")
        path.write_bytes(path.read_bytes() + b"\0\0\0\n")
        desk.open(10)
    desk.node.away = False
    desk.step(1.0)
    assert desk.generation() != generation
    desk.dispatcher.close()


def test_the_end_of_a_line_that_was_cut_off(journaling: Desk, tmp_path: Path) -> None:
    """Half a key that a crash left behind was never counted on: it goes, the generation stays."""
    generation = journaling.generation()
    journaling.dispatcher.close()
    [path] = (tmp_path / "slot").glob("*.journal")
    path.write_bytes(path.read_bytes() + b"k a1")
    journaling.open(10)
    journaling.step()
    assert journaling.generation() == generation
    assert path.read_bytes().startswith(b"g %016x " % generation)
    assert path.read_bytes().endswith(b"\n")


def test_a_disk_that_is_full(journaling: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `_write_journal` returns. Keys stay in memory and W where it is until they are on disk."""
    desk = journaling
    desk.node.away = True
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    desk.step()

    def refuse(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("leasecache.invalidation.journal.write_all", refuse)
        for _ in range(30):
            desk.step(10.0)
        assert (desk.dispatcher.acknowledged, len(desk.dispatcher)) == (10, 1)
        assert desk.notes.seen["a journal failed"]
    desk.step(10.0)
    assert (desk.dispatcher.acknowledged, len(desk.dispatcher)) == (20, 0)


def test_a_node_that_is_back_before_the_disk(journaling: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `_discard`. What the disk refused is told to the node from memory, once."""
    desk = journaling
    desk.node.away = True
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)

    def refuse(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("leasecache.invalidation.journal.write_all", refuse)
        for _ in range(30):
            desk.step(10.0)
        desk.node.away = False
        for _ in range(5):
            desk.step(10.0)
        assert (desk.dispatcher.acknowledged, len(desk.dispatcher)) == (20, 0)


def test_w_is_on_disk_before_it_is_reported(journaling: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `confirm` saves first. What cannot be noted is not reported."""
    journaling.dispatcher.advance(20)

    def refuse(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("leasecache.invalidation.journal.write_all", refuse)
        assert journaling.dispatcher.confirm() == 10
    assert journaling.dispatcher.confirm() == 20


def test_a_generation_that_cannot_be_noted(journaling: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `_unnoted`. W stays while the journal has another generation than the node."""

    def refuse(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("leasecache.invalidation.journal.write_all", refuse)
        journaling.dispatcher.bump("truncate")
        journaling.dispatcher.advance(20)
        journaling.step()
        journaling.step(JOURNAL_EVERY)
        assert journaling.dispatcher.acknowledged == 10
    journaling.step(JOURNAL_EVERY)
    assert journaling.dispatcher.acknowledged == 20


def test_two_shards_vouch_together() -> None:
    """Guard: `_vouched_rules`. Of two daemons for one node neither vouches alone, and one that dies is soon missed."""
    desk = Desk(others=("shard_b",))
    desk.step()
    record = desk.node.record()
    assert record is not None
    assert record.rules == set()
    other = Dispatcher(
        [FakeRing(desk.node)],  # type: ignore[list-item]
        RULES,
        Terms(naming=Naming(), guard_ttl=TTL, others=("slot",)),
        desk.notes,
        desk.woken.set,
        "shard_b",
    )
    first, desk.dispatcher = desk.dispatcher, other
    other.begin("system", 0, desk.now, known=False)
    desk.step()
    desk.dispatcher = first
    desk.step(TTL / 4)
    record = desk.node.record()
    assert record is not None
    assert len(record.rules) == 2
    other.close()
    MemoryStore.invalidate(desk.node, [pulse_key("shop", "shard_b")])
    desk.step(TTL / 4)
    record = desk.node.record()
    assert record is not None
    assert record.rules == set()
    first.close()


def test_a_write_that_ends_in_another_tenure(desk: Desk) -> None:
    """Guard: `wrote` compares tenures. What an earlier conversation began to write makes nothing known here."""
    generation = desk.generation()
    [box] = desk.dispatcher._mailboxes.values()
    keeper = box.keeper
    assert keeper is not None
    written = keeper.write(math.inf)
    assert written is not None
    desk.dispatcher.begin("system", 99, desk.now, known=False)
    keeper.wrote(written, desk.now)
    assert keeper.generation is None
    desk.step()
    assert desk.generation() != generation


def test_a_charter_that_changes_during_a_write(desk: Desk) -> None:
    """Guard: `wrote` compares charters. What is served no more leaves the record at once."""
    [box] = desk.dispatcher._mailboxes.values()
    keeper = box.keeper
    assert keeper is not None
    written = keeper.write(math.inf)
    assert written is not None
    desk.dispatcher.serve(RuleSet(namespace="shop", rules=RULES.rules[:1]))
    keeper.wrote(written, desk.now)
    desk.step()
    record = desk.node.record()
    assert record is not None
    assert len(record.rules) == 1


def test_a_process_that_was_stopped_before_it_writes(desk: Desk) -> None:
    """Guard: `until` is compared behind the read. What another holder of the slot has written meanwhile stays."""
    [box] = desk.dispatcher._mailboxes.values()
    keeper = box.keeper
    assert keeper is not None
    other = Record(generation=77, tenure=78, rings=frozenset({b"ring"}), rules=frozenset())
    desk.node.write(other)
    assert keeper.write(time.monotonic()) is None
    assert desk.node.record() == other


def _cut_off(desk: Desk, position: int) -> None:
    """Let the node be away until what it misses is in the journal and no record stands."""
    desk.node.away = True
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(position)
    for _ in range(8):
        desk.step(1.0)
    MemoryStore.invalidate(desk.node, [GUARD])
    desk.node.away = False
    desk.step(1.0)
    desk.step()


def test_a_renewal_that_ends_in_another_conversation(journaling: Desk) -> None:
    """Guard: `wrote` takes over what was written meanwhile. Else the node would get back what it was to give up."""
    desk = journaling
    before = desk.generation()
    [box] = desk.dispatcher._mailboxes.values()
    assert box.keeper is not None
    written = box.keeper.write(math.inf, new=True)
    assert written is not None
    desk.dispatcher.begin("system", 10, desk.now, known=True)
    box.keeper.wrote(written, desk.now)
    _cut_off(desk, 20)
    assert desk.generation() != before


def test_a_batch_that_ends_in_another_conversation(desk: Desk) -> None:
    """Guard: `_moved` leaves an unknown generation unknown, whoever has written the one that a batch has found."""
    [box] = desk.dispatcher._mailboxes.values()
    ours = desk.node.record()
    assert ours is not None
    desk.dispatcher.begin("system", 99, desk.now, known=False)
    cleared = Record(generation=77, tenure=ours.tenure, rings=ours.rings, rules=ours.rules)
    box._sent((ours.generation, cleared.to_bytes()), desk.now, desk.notes)
    desk.step()
    assert desk.generation() not in (77, ours.generation)


def test_less_is_served_while_there_is_no_record(desk: Desk) -> None:
    """Guard: a charter with less voids the generation. What was served no more for a while has missed changes."""
    generation = desk.generation()
    MemoryStore.invalidate(desk.node, [GUARD])
    desk.dispatcher.serve(RuleSet(namespace="shop", rules=RULES.rules[:1]))
    desk.dispatcher.advance(5)
    assert desk.dispatcher.acknowledged == 0
    desk.step()
    desk.dispatcher.serve(RULES)
    desk.step()
    assert (desk.generation() != generation, desk.dispatcher.acknowledged) == (True, 5)


def test_less_was_served_by_another_process(journaling: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `resume` compares marks. A process with fewer rules leaves no generation that has more to one with more.

    The record has run out before each of them: nothing but the journal tells.
    """
    generation = journaling.generation()
    for rules in (RuleSet(namespace="shop", rules=RULES.rules[:1]), RULES):
        MemoryStore.invalidate(journaling.node, [GUARD])
        monkeypatch.setattr("tests.unit.test_guarding.RULES", rules)
        journaling.again(10)
        journaling.dispatcher.advance(10)
        journaling.step()
    assert journaling.generation() != generation


def test_a_server_that_was_restarted_between_processes(journaling: Desk) -> None:
    """Guard: the journal has the run. What a server brought back from disk is as old as that, also without a record."""
    generation = journaling.generation()
    journaling.dispatcher.close()
    MemoryStore.invalidate(journaling.node, [GUARD])
    journaling.node.run_id = "another"
    journaling.open(10)
    journaling.step()
    assert journaling.generation() != generation


def test_a_node_that_was_not_in_the_ring_for_a_while(journaling: Desk) -> None:
    """Guard: `forget_all_but`. W has passed without the node, so its generation of before is not known any more."""
    desk, node, generation = journaling, journaling.node, journaling.generation()
    desk.node = GuardedNode("b")
    desk.again(10)
    desk.step()
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    desk.step()
    assert desk.dispatcher.confirm() == 20
    MemoryStore.invalidate(node, [GUARD])
    desk.node = node
    desk.again(20)
    desk.step()
    assert desk.generation() != generation


@pytest.mark.parametrize("void", [False, True], ids=["generation", "void"])
def test_nobody_was_guarded_for_a_while(journaling: Desk, void: bool) -> None:
    """Guard: `_forget`. A process without guards tells nothing under a generation, and waits for none."""
    desk, guarded, generation = journaling, journaling.terms, journaling.generation()
    if void:
        desk.node.away = True
        desk.dispatcher.bump("truncate")
        for _ in range(8):
            desk.step(1.0)
        desk.node.away = False
    desk.terms = Terms(naming=Naming(guarded=False), guard_ttl=TTL, journal=guarded.journal)
    desk.again(10)
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    desk.step()
    assert desk.dispatcher.confirm() == 20
    MemoryStore.invalidate(desk.node, [GUARD])
    desk.terms = guarded
    desk.again(20)
    desk.step()
    assert desk.generation() != generation


def test_the_slot_may_have_been_lent(journaling: Desk) -> None:
    """Guard: `begin` waits for others. A daemon that had the slot in between may have written a record just now."""
    desk = journaling
    desk.node.away = True
    desk.now += 1000
    desk.dispatcher.begin("system", 10, desk.now, known=True)
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    for _ in range(10):
        desk.step(2.0)
    assert desk.dispatcher.acknowledged == 0
    for _ in range(70):
        desk.step(2.0)
    assert desk.dispatcher.acknowledged == 20


def test_nothing_to_do_without_the_slot(desk: Desk) -> None:
    """A node that has failed is no reason to turn while nothing may be written there."""
    desk.node.away = True
    desk.step(TTL)
    desk.node.away = False
    desk.step(TTL, vouched=False)
    assert desk.dispatcher.next_due(desk.now) is None
    desk.dispatcher.put({b"a1": 0.0})
    assert desk.dispatcher.next_due(desk.now) == 0


def test_a_journal_that_cannot_be_opened(tmp_path: Path) -> None:
    """Guard: `_open_mailboxes` opens all nodes or none. The next attempt knows no more than the first one."""
    desk = Desk()
    path = tmp_path / "slot" / "b.journal"
    nodes = GuardedNode("a"), GuardedNode("b")
    terms = Terms(naming=Naming(), guard_ttl=TTL, journal=tmp_path)
    dispatcher = Dispatcher([FakeRing(*nodes)], RULES, terms, desk.notes, desk.woken.set, "slot")  # type: ignore[arg-type]
    path.mkdir(parents=True)
    assert not dispatcher.knows("system", 10)
    with pytest.raises(SourceError):
        dispatcher.begin("system", 10, desk.now, known=False)
    path.rmdir()
    assert not dispatcher.knows("system", 10)
    dispatcher.begin("system", 10, desk.now, known=False)
    assert set(dispatcher._mailboxes) == {"a", "b"}
    dispatcher.close()
    desk.dispatcher.close()


def test_a_shard_that_vouches_for_less() -> None:
    """Guard: pulses name functions. What one of two daemons cannot vouch for, the other one does not either."""
    desk = Desk(others=("shard_b",))
    MemoryStore.lease_set(desk.node, _lease(desk.node, pulse_key("shop", "shard_b")), 1, b"%016x " % 5, TTL)
    desk.step()
    record = desk.node.record()
    assert record is not None
    assert record.rules == set()
    desk.dispatcher.close()


def test_a_pulse_of_a_process_that_was_stopped() -> None:
    """Guard: `until` is compared before a pulse, too. Others would vouch for what the slot's next holder has missed."""
    desk = Desk(others=("shard_b",))
    [box] = desk.dispatcher._mailboxes.values()
    assert box.keeper is not None
    assert box.keeper.write(time.monotonic()) is None
    assert desk.node.look(pulse_key("shop", "slot")) is None
    desk.dispatcher.close()


def _lease(node: GuardedNode, key: bytes) -> Lease:
    answer = node.lease_get(key, 10)
    assert isinstance(answer, Lease)
    return answer


def test_a_node_that_is_replaced_by_one_that_cannot_serve(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `_met`. What would be wrong settings at the start is a node that failed later: the other ones go on."""

    def refuse() -> None:
        raise ConfigError("it runs with -C (no CAS)")

    with monkeypatch.context() as patched:
        patched.setattr(desk.node, "_check", refuse)
        desk.dispatcher.put({b"a1": 0.0})
        desk.dispatcher.advance(5)
        desk.step()
        assert desk.dispatcher.acknowledged == 0
    desk.step(1.0)
    assert desk.dispatcher.acknowledged == 5
    new = Desk()
    monkeypatch.setattr(new.node, "_check", refuse)
    with pytest.raises(ConfigError):
        new.step()
    new.dispatcher.close()


def test_a_journal_that_cannot_be_read(journaling: Desk, tmp_path: Path) -> None:
    """Guard: `step` catches it. W stays, the loop and the other nodes go on, and the next process renews."""
    desk, generation = journaling, journaling.generation()
    desk.node.away = True
    desk.dispatcher.put({b"a1": 0.0})
    desk.dispatcher.advance(20)
    for _ in range(8):
        desk.step(1.0)
    desk.node.away = False
    [path] = (tmp_path / "slot").glob("*.journal")
    path.unlink()
    for _ in range(3):
        desk.step(JOURNAL_EVERY)
    assert (desk.dispatcher.acknowledged, desk.notes.seen["a journal failed"] > 0) == (10, True)
    desk.again(10)
    desk.step()
    assert desk.generation() != generation


def test_conversations_that_come_and_go(desk: Desk) -> None:
    """Guard: `TENURES` bounds what a node's keeper remembers of conversations; a cleared cache is still taken over."""
    [box] = desk.dispatcher._mailboxes.values()
    assert box.keeper is not None
    for _ in range(300):
        desk.dispatcher.begin("system", 0, desk.now, known=True)
    desk.step()
    ours = desk.node.record()
    assert ours is not None
    desk.node.write(Record(generation=77, tenure=ours.tenure, rings=ours.rings, rules=ours.rules))
    desk.step(TTL)
    assert (desk.generation(), len(box.keeper._tenures)) == (77, 100)
