"""Journals of the daemon: when W may pass a node that is away, and what the next process goes on with."""

import math
from pathlib import Path
from typing import Any

import pytest

from leasecache.errors import SourceError
from leasecache.guard import Record, wire_key
from leasecache.invalidation.dispatch import Dispatcher, Terms
from leasecache.invalidation.journal import Journal, Position
from leasecache.invalidation.keeper import CLOCK_SLACK, SUCCESSOR_WAIT
from leasecache.invalidation.mailbox import JOURNAL_AFTER, JOURNAL_EVERY, Naming
from leasecache.rules import RuleSet
from leasecache.stores.memory import MemoryStore
from tests.fix_desk import GUARD, RULES, TTL, Desk, GuardedNode
from tests.unit.test_stream_dispatch import FakeRing


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


def test_another_process_without_a_journal(desk: Desk) -> None:
    """Guard: `knows`. Nobody can tell what became of the slot in between, so every node gets a new generation."""
    generation = desk.generation()
    desk.again(confirmed=0)
    desk.step()
    assert desk.generation() != generation


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


def test_less_was_served_by_another_process(journaling: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `resume` compares marks. A process with fewer rules leaves no generation that has more to one with more.

    The record has run out before each of them: nothing but the journal tells.
    """
    generation = journaling.generation()
    for rules in (RuleSet(namespace="shop", rules=RULES.rules[:1]), RULES):
        MemoryStore.invalidate(journaling.node, [GUARD])
        monkeypatch.setattr("tests.fix_desk.RULES", rules)
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


@pytest.mark.parametrize(
    ("before", "now", "known"),
    [
        ({"media": "1"}, {"media": "1"}, True),
        ({"media": "1"}, {"media": "1", "comments": "2"}, True),  # a rule more
        ({"media": "1", "comments": "2"}, {"media": "1"}, True),
        ({"media": "1"}, {"media": "2"}, False),
        ({"media": "1"}, None, False),
        (None, {"media": "1"}, False),
        (None, None, True),
    ],
)
def test_tables_between_processes(
    tmp_path: Path, before: dict[str, str] | None, now: dict[str, str] | None, known: bool
) -> None:
    """What a journal has of the tables must be so still; a position that does not go with it says nothing."""
    journal = Journal(tmp_path, "slot", 2**20)
    position = Position("system", 10, 1, None if before is None else journal.note_tables(before))
    journal.save(position)
    saved = journal.open()
    assert saved == position
    assert journal.stands_on(saved, now) is known
    journal.note_tables({"others": "3"})
    assert journal.stands_on(saved, now) is (known and before == now)
    journal.close()
