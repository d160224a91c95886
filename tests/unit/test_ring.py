"""Which node owns a key. Application and daemon must agree, so the owners below never change."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from leasecache.stores import ring

NODES = [f"10.0.0.{n}:11211" for n in range(1, 6)]
KEYS = [b"shop:media:%d" % n for n in range(20_000)]


def owners(nodes: list[str], keys: list[bytes] = KEYS) -> list[str]:
    """Return the owner of each key."""
    seeds = [ring.seed(node) for node in nodes]
    return [nodes[ring.owner(key, seeds)] for key in keys]


def test_owners_are_golden() -> None:
    """The owners of some keys are written down: another hash would separate application and daemon."""
    found = owners(NODES, [b"shop:media:1", b"shop:media:2", b"shop:media:12345", b"shop:feed:7", b"", b"\xff" * 220])
    assert [node.removeprefix("10.0.0.").removesuffix(":11211") for node in found] == list("512324")


def test_keys_are_spread_evenly() -> None:
    """Each of five nodes owns a fifth of the keys, to within a tenth of that."""
    counts = Counter(owners(NODES))
    assert set(counts) == set(NODES)
    assert all(abs(count - 4000) < 400 for count in counts.values())


def test_new_node_takes_its_share_and_nothing_else_moves() -> None:
    """A sixth node takes a sixth of the keys; no key moves between the five."""
    before, after = owners(NODES), owners([*NODES, "10.0.0.6:11211"])
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"10.0.0.6:11211"}
    assert abs(len(moved) - len(KEYS) / 6) < len(KEYS) / 60


@given(st.binary(max_size=220), st.permutations(NODES))
def test_order_of_nodes_does_not_matter(key: bytes, nodes: list[str]) -> None:
    """However the URL lists the nodes, a key has the same owner."""
    assert owners(nodes, [key]) == owners(NODES, [key])
