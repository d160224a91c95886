"""A memcached that has no room: functions go on, nobody waits in vain, and the figures tell."""

import os
import time
from collections import Counter

import pytest

from leasecache import Cache
from leasecache.lab import MemcachedServer

SMALL = ("-m", "8", "-I", "1m")  # MB in all, and for one value
BLOBS = range(30)
BOUND = 30.0  # s: far more than these calls take, far less than calls that wait in vain


def test_full_node_that_evicts_costs_loads_alone() -> None:
    """Values that push each other out are loaded whenever they are asked for, and each load is stored."""
    with MemcachedServer(*SMALL) as server, Cache.from_url(server.url) as cache:

        @cache.cached("blob:{n}", ttl=60)
        def blob(n: int) -> bytes:
            return os.urandom(900_000)

        states = Counter(blob.lookup(n).state for _ in range(2) for n in BLOBS)
        assert states.keys() <= {"loaded", "fresh"}
        assert states["loaded"] > len(BLOBS)
        [figures] = cache.stats().functions
        assert figures.refused == 0
        assert figures.misses == figures.won == states["loaded"]


@pytest.mark.parametrize("recent", [False, True])
def test_full_node_that_may_not_evict_keeps_nobody_waiting(recent: bool) -> None:
    """Without room a load is given to its caller, nobody waits for its lease, and the node counts as up."""
    with MemcachedServer("-M", *SMALL, recent=recent) as server, Cache.from_url(server.url) as cache:

        @cache.cached("blob:{n}", ttl=60, wait_for=60, lease_for=60)
        def blob(n: int) -> bytes:
            return os.urandom(900_000)

        states = Counter(blob.lookup(n).state for n in BLOBS)
        assert states.keys() == {"loaded", "uncached"}
        began = time.monotonic()
        again = Counter(blob.lookup(n).state for n in BLOBS)
        assert time.monotonic() - began < BOUND
        assert again == {"fresh": states["loaded"], "uncached": states["uncached"]}
        stats = cache.stats()
        assert stats.functions[0].refused == 2 * states["uncached"]
        assert stats.nodes[0].up
        assert not any(stats.nodes[0].errors.values())
