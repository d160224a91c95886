"""Guard records of the daemon: what they say, which generation they name, and when they are written."""

import math
import time

import pytest

from leasecache.errors import ConfigError
from leasecache.guard import Record, pulse_key, wire_key
from leasecache.invalidation.dispatch import VOUCHED_FOR, Dispatcher, Terms
from leasecache.invalidation.mailbox import Naming
from leasecache.lease import Lease
from leasecache.rules import RuleSet
from leasecache.stores.memory import MemoryStore
from tests.fix_desk import GUARD, RULES, TTL, Desk, GuardedNode
from tests.unit.test_stream_dispatch import FakeRing


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


def test_nothing_to_do_without_the_slot(desk: Desk) -> None:
    """A node that has failed is no reason to turn while nothing may be written there."""
    desk.node.away = True
    desk.step(TTL)
    desk.node.away = False
    desk.step(TTL, vouched=False)
    assert desk.dispatcher.next_due(desk.now) is None
    desk.dispatcher.put({b"a1": 0.0})
    assert desk.dispatcher.next_due(desk.now) == 0


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
