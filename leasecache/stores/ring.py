"""Which node owns a key: rendezvous hashing, so that adding a node moves only 1/n of the keys.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998). Application and daemon must agree
on the owner, so the order in which nodes are listed does not matter and the functions here never change.
"""

import zlib
from collections.abc import Sequence

_MASK = 2**64 - 1


def owner(key: bytes, seeds: Sequence[int]) -> int:
    """Return the position of the seed whose node owns `key`."""
    if len(seeds) == 1:
        return 0
    hashed = zlib.crc32(key)
    scores = [_mix(seed ^ hashed) for seed in seeds]
    return scores.index(max(scores))


def seed(name: str) -> int:
    """Return the 64-bit seed of a node's name."""
    data = name.encode()
    return _mix(zlib.crc32(data) << 32 | zlib.adler32(data))


def _mix(x: int) -> int:
    """Spread 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
