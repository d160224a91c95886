"""Which node owns a key: rendezvous hashing, so that adding a node moves only its share of the keys.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); with weights, each node's score is its
weight divided by −log2 of its draw (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005).
Application and daemon must agree on the owner, so the order in which nodes are listed does not matter and what is
computed here never changes.
"""

import zlib
from collections.abc import Sequence

from leasecache._accel import Ring
from leasecache._pure_keys import mix


def ring(names: Sequence[str], weights: Sequence[float] | None = None) -> Ring:
    """Return the ring of the nodes of these names; each owns its weight's share of the keys, by default the same."""
    return Ring([seed(name) for name in names], weights or [1] * len(names))


def seed(name: str) -> int:
    """Return the 64-bit seed of a node's name."""
    data = name.encode()
    return mix(zlib.crc32(data) << 32 | zlib.adler32(data))
