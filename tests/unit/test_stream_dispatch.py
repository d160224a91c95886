"""Dispatch: what W may say, with nodes that fail, lag and come back."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.errors import NodeError
from leasecache.invalidation.dispatch import Dispatcher, Terms
from leasecache.invalidation.mailbox import BATCH_KEYS, Naming
from leasecache.rules import RuleSet
from leasecache.stores.base import Node


class FakeNode:
    """A node that answers when it is let, or fails."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self.calls: list[tuple[list[bytes], float]] = []

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Acknowledge, once let."""
        self.open.wait(60)
        if self.error is not None:
            raise self.error
        self.calls.append((list(keys), stale_for))


UNGUARDED = Terms(naming=Naming(guarded=False), guard_ttl=60)
NO_RULES = RuleSet(namespace=None)


class FakeRing:
    """Keys that begin with a node's name belong to it."""

    mark = b"ring"

    def __init__(self, *nodes: FakeNode) -> None:
        self._nodes = nodes

    @property
    def nodes(self) -> Sequence[Node]:
        """Return every node."""
        return self._nodes

    def node_for(self, key: bytes) -> Node:
        """Return the owner of `key`."""
        return next(node for node in self._nodes if key.startswith(node.name.encode()))


class Notes:
    """An observer that counts."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def invalidated(self, node: str, keys: int) -> None:
        """Count keys."""
        self.seen[node] += keys

    def node_failed(self, node: str, error: NodeError) -> None:
        """Count a failure."""
        self.seen[f"{node} failed"] += 1

    def node_recovered(self, node: str) -> None:
        """Count a recovery."""
        self.seen[f"{node} recovered"] += 1

    def guarded(self, node: str, state: str, generation: int | None) -> None:
        """Count what became of a record."""
        self.seen[f"{node} {state}"] += 1

    def journaled(self, node: str, keys: int, size_bytes: int) -> None:
        """Keep how many keys a journal holds."""
        self.seen[f"{node} journal"] = keys

    def journal_failed(self, node: str, error: Exception) -> None:
        """Count a journal that cannot be written."""
        self.seen[f"{node} journal failed"] += 1

    def bumped(self, reason: str) -> None:
        """Count a renewal of all generations."""
        self.seen["bumped"] += 1


class Bench:
    """A dispatcher of two nodes and its surroundings."""

    def __init__(self) -> None:
        self.a, self.b, self.notes = FakeNode("a"), FakeNode("b"), Notes()
        self.woken = threading.Event()
        ring = FakeRing(self.a, self.b)
        self.dispatcher = Dispatcher([ring], NO_RULES, UNGUARDED, self.notes, self.woken.set)

    def restart(self) -> None:
        """Begin another conversation."""
        self.dispatcher.begin("system", 0, 0.0, known=True)

    def settle(self, position: int, now: float = 0.0) -> None:
        """Step until W is at `position`."""
        deadline = time.monotonic() + 60
        while self.dispatcher.acknowledged != position:
            assert time.monotonic() < deadline, self.dispatcher.acknowledged
            self.dispatcher.step(now)
            self.woken.wait(0.01)
            self.woken.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Two nodes."""
    bench = Bench()
    yield bench
    bench.a.open.set()
    bench.b.open.set()
    bench.dispatcher.close()


def test_w_waits_for_every_owner(bench: Bench) -> None:
    """W passes a transaction when all nodes that own a key of it have acknowledged."""
    bench.b.open.clear()
    bench.dispatcher.put({b"a1": 0.0, b"b1": 5.0})
    bench.dispatcher.advance(10)
    bench.dispatcher.step(0)
    bench.woken.wait(60)
    bench.dispatcher.step(0)
    assert (bench.notes.seen["a"], bench.dispatcher.acknowledged) == (1, 0)
    bench.b.open.set()
    bench.settle(10)
    assert bench.b.calls == [([b"b1"], 5.0)]


def test_without_keys_w_follows_at_once(bench: Bench) -> None:
    """A transaction without keys needs no node."""
    bench.dispatcher.advance(10)
    assert bench.dispatcher.acknowledged == 10


def test_w_never_goes_back(bench: Bench) -> None:
    """Keys that are put after W has moved do not move it back."""
    bench.dispatcher.advance(10)
    bench.b.open.clear()
    bench.dispatcher.put({b"b1": 0.0})
    bench.dispatcher.advance(20)
    bench.dispatcher.step(0)
    assert bench.dispatcher.acknowledged == 10


def test_keys_pile_up_while_a_batch_is_under_way(bench: Bench) -> None:
    """While a node is busy its next keys are collected, once each and at their strictest, and go in one batch."""
    bench.a.open.clear()
    bench.dispatcher.put({b"a0": 0.0})
    bench.dispatcher.advance(1)
    bench.dispatcher.step(0)
    for position in range(2, 100):
        bench.dispatcher.put({b"a1": float(position)})
        bench.dispatcher.advance(position)
        bench.dispatcher.step(0)
    bench.a.open.set()
    bench.settle(99)
    assert bench.a.calls == [([b"a0"], 0.0), ([b"a1"], 2.0)]


def test_large_batches_are_cut(bench: Bench) -> None:
    """No pipeline is longer than BATCH_KEYS, and W waits for the last one."""
    bench.dispatcher.put({b"a%d" % i: 0.0 for i in range(BATCH_KEYS * 2 + 1)})
    bench.dispatcher.advance(10)
    bench.settle(10)
    assert [len(keys) for keys, _ in bench.a.calls] == [BATCH_KEYS, BATCH_KEYS, 1]


def test_a_failing_node_keeps_its_keys(bench: Bench) -> None:
    """A node that fails is tried again after a delay, the other goes on, and W waits."""
    bench.a.error = NodeError("gone")
    bench.dispatcher.put({b"a1": 0.0, b"b1": 0.0})
    bench.dispatcher.advance(10)
    deadline = time.monotonic() + 60
    while not (bench.notes.seen["a failed"] and bench.notes.seen["b"]) and time.monotonic() < deadline:
        bench.dispatcher.step(0)
        time.sleep(0.001)
    assert (bench.dispatcher.acknowledged, len(bench.dispatcher)) == (0, 1)
    assert bench.dispatcher.next_due(0) == pytest.approx(0.05)
    bench.a.error = None
    bench.dispatcher.step(0.04)
    assert not bench.a.calls
    bench.settle(10, now=0.06)
    assert bench.notes.seen["a recovered"] == 1
    assert bench.dispatcher.next_due(0) is None


def test_an_unexpected_error_is_raised_and_loses_nothing(bench: Bench) -> None:
    """What is not a NodeError reaches the caller; the keys are tried again all the same."""
    bench.a.error = RuntimeError("a bug")
    bench.dispatcher.put({b"a1": 0.0})
    bench.dispatcher.advance(10)
    with pytest.raises(RuntimeError, match="a bug"):
        bench.settle(10)
    bench.a.error = None
    bench.settle(10, now=1.0)


def test_a_new_stream_counts_anew(bench: Bench) -> None:
    """After a restart W is what the new stream has earned, and keys of before are in front of it."""
    bench.dispatcher.advance(100)
    bench.a.open.clear()
    bench.dispatcher.put({b"a1": 0.0})
    bench.dispatcher.step(0)
    bench.restart()
    bench.dispatcher.advance(50)
    assert bench.dispatcher.acknowledged == 0
    bench.a.open.set()
    bench.settle(50)


@given(st.lists(st.sampled_from(["put a", "put b", "fail", "heal", "step", "restart"]), max_size=30))
def test_w_only_covers_what_was_acknowledged(script: list[str]) -> None:
    """Whatever happens in whatever order, every key put before W has been acknowledged by its node since."""
    bench = Bench()
    put: list[tuple[int, bytes]] = []
    position = 0
    now = 0.0
    for action in script:
        now += 2.0
        if action.startswith("put"):
            position += 1
            key = b"%s%d" % (action[-1].encode(), position)
            put.append((position, key))
            bench.dispatcher.put({key: 0.0})
            bench.dispatcher.advance(position)
        elif action == "restart":
            bench.restart()
        elif action == "step":
            bench.dispatcher.step(now)
        else:
            bench.a.error = NodeError("gone") if action == "fail" else None
        done = {key for keys, _ in bench.a.calls + bench.b.calls for key in keys}
        assert all(key in done for at, key in put if at <= bench.dispatcher.acknowledged)
    bench.dispatcher.close()
