"""Which node owns a key. Application and daemon must agree, so the owners below never change."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.stores import ring
from tests.twins import TWINS, each_twin, outcome

NODES = [f"10.0.0.{n}:11211" for n in range(1, 6)]
NEW = "10.0.0.6:11211"
KEYS = [b"shop:media:%d" % n for n in range(20_000)]
SOME = [b"shop:media:1", b"shop:media:2", b"shop:media:12345", b"shop:feed:7", b"", b"\xff" * 220]

keys = st.binary(max_size=220)
weights = st.floats(1e-3, 1e3) | st.integers(1, 100)


def owners(twin: Any, nodes: Sequence[str], keys: Sequence[bytes] = KEYS, weights: Sequence[float] = ()) -> list[str]:
    """Return the owner of each key."""
    made = twin.Ring([ring.seed(node) for node in nodes], weights or [1] * len(nodes))
    return [nodes[made.owner(key)] for key in keys]


def short(found: list[str]) -> str:
    """Return the last digits of nodes."""
    return "".join(node.removeprefix("10.0.0.").removesuffix(":11211") for node in found)


@each_twin
def test_owners_are_golden(twin: Any) -> None:
    """The owners of some keys are written down: another hash would separate application and daemon."""
    assert short(owners(twin, NODES, SOME)) == "512324"


@each_twin
def test_weighted_owners_are_golden(twin: Any) -> None:
    """The owners under weights are written down as well."""
    assert short(owners(twin, NODES, SOME, [1, 2, 0.5, 4, 1])) == "542324"


@each_twin
def test_keys_are_spread_evenly(twin: Any) -> None:
    """Each of five nodes owns a fifth of the keys, to within a tenth of that."""
    counts = Counter(owners(twin, NODES))
    assert set(counts) == set(NODES)
    assert all(abs(count - 4000) < 400 for count in counts.values())


@each_twin
def test_shares_are_proportional_to_weights(twin: Any) -> None:
    """A node of weight 3 owns three times as many keys as one of weight 1, to within a tenth."""
    counts = Counter(owners(twin, NODES, weights=[1, 3, 0.5, 2, 3.5]))
    for node, weight in zip(NODES, [1, 3, 0.5, 2, 3.5], strict=True):
        assert counts[node] == pytest.approx(len(KEYS) * weight / 10, rel=0.1)


@given(st.lists(keys, min_size=1, max_size=20), st.lists(weights, min_size=6, max_size=6))
def test_new_node_takes_keys_and_nothing_else_moves(asked: list[bytes], weights: list[float]) -> None:
    """Whatever the weights, with one node more a key stays where it was or goes to the new node."""
    for old, new in zip(
        owners(TWINS[-1], NODES, asked, weights[:5]),
        owners(TWINS[-1], [*NODES, NEW], asked, weights),
        strict=True,
    ):
        assert new in (old, NEW)


@pytest.mark.parametrize(("weights", "share"), [([1] * 6, 1 / 6), ([1, 3, 0.5, 2, 3.5, 2], 2 / 12)])
def test_new_node_takes_its_share(weights: list[float], share: float) -> None:
    """A sixth node takes as many keys as its weight is of all weights."""
    after = owners(TWINS[-1], [*NODES, NEW], KEYS, weights)
    assert after.count(NEW) == pytest.approx(len(KEYS) * share, rel=0.1)


@each_twin
def test_weight_moves_no_key_between_others(twin: Any) -> None:
    """A node that gets a higher weight only takes keys, and no key moves between the others."""
    before = owners(twin, NODES, KEYS[:2000], [1, 1, 1, 1, 1])
    after = owners(twin, NODES, KEYS[:2000], [1, 1, 1.5, 1, 1])
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert moved
    assert {new for _, new in moved} == {NODES[2]}


@given(keys, st.permutations(list(enumerate(NODES))), st.lists(weights, min_size=5, max_size=5))
def test_order_of_nodes_does_not_matter(key: bytes, order: list[tuple[int, str]], weights: list[float]) -> None:
    """However the URL lists the nodes, a key has the same owner."""
    listed = owners(TWINS[-1], [node for _, node in order], [key], [weights[i] for i, _ in order])
    assert listed == owners(TWINS[-1], NODES, [key], weights)


@given(keys, st.lists(st.tuples(st.integers(0, 2**64 - 1), weights), min_size=1, max_size=8))
def test_twins_agree(key: bytes, nodes: list[tuple[int, float]]) -> None:
    """Compiled and pure ring find the same owner, whatever the seeds and weights."""
    rings = [twin.Ring([seed for seed, _ in nodes], [weight for _, weight in nodes]) for twin in TWINS]
    assert len({made.owner(key) for made in rings}) == 1


@given(keys, st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=8), st.floats(1e-3, 1e3))
def test_equal_weights_are_no_weights(key: bytes, seeds: list[int], weight: float) -> None:
    """Nodes of one weight, whatever it is, own what they own without weights."""
    for twin in TWINS:
        assert twin.Ring(seeds, [weight] * len(seeds)).owner(key) == twin.Ring(seeds, [1] * len(seeds)).owner(key)


@pytest.mark.parametrize("weights", [[], [1], [1, 0], [1, -1], [1, float("nan")]])
def test_refused(weights: list[float]) -> None:
    """A ring without a weight above 0 for each node is refused, by both twins in the same words."""
    refusals = [outcome(twin.Ring, [1, 2], weights) for twin in TWINS]
    assert refusals[0][:2] == ("raised", ValueError)
    assert refusals.count(refusals[0]) == len(refusals)
