"""Values at the edge of what a server holds: the largest that fits is stored, one byte more is not even sent."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leasecache import Cache
from leasecache.codecs import UNCACHEABLE
from leasecache.lab import MemcachedServer
from leasecache.lease import Answer, Fill, Hit, Lease, Refused, Stored, Wait
from leasecache.stores import memory
from leasecache.stores.base import Outcome
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.memory import MemoryStore

FLAGS = 0x10000001
OVERHEAD = 63  # bytes of an item beside key and value, as memcached counts: header 48, CAS 8, flags 4, a zero, CRLF
LIMIT = 512 * 1024  # bytes, half the default


@pytest.fixture(scope="module", params=[False, True], ids=["system", "recent"])
def server(request: pytest.FixtureRequest) -> Iterator[MemcachedServer]:
    """A memcached with a limit of its own."""
    with MemcachedServer("-I", str(LIMIT), "-m", "64", recent=request.param) as running:
        yield running


@pytest.fixture
def node(server: MemcachedServer) -> Iterator[MemcachedNode]:
    """A node of it."""
    opened = MemcachedNode(server.address)
    yield opened
    opened.close()


def stored(store: MemcachedNode | MemoryStore, key: bytes, size: int) -> Outcome:
    """Store a new value of `size` bytes."""
    store.invalidate([key])
    lease = store.lease_get(key, 10)
    assert isinstance(lease, Lease)
    return store.lease_set(lease, FLAGS, b"x" * size, 60)


def is_mark(answer: Answer) -> bool:
    """Tell whether a lease-get found the mark of a value that is too large."""
    return isinstance(answer, Hit) and (answer.value, answer.flags) == (b"", UNCACHEABLE)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 220), st.integers(-3, 3))
def test_exact_limit(node: MemcachedNode, length: int, beyond: int) -> None:
    """Whatever the length of the key, item_size_max is used to the last byte, and never asked too much of."""
    key = b"k" * length
    outcome = stored(node, key, LIMIT - OVERHEAD - length + beyond)
    found = node.lease_get(key, 10)
    if beyond <= 0:
        assert outcome == Stored()
        assert isinstance(found, Hit)
        assert len(found.value) == LIMIT - OVERHEAD - length + beyond
    else:
        assert isinstance(outcome, Refused)
        assert f"item_size_max of {LIMIT} bytes" in outcome.reason
        assert is_mark(found)


def test_value_that_is_too_large_is_not_sent(server: MemcachedServer, node: MemcachedNode) -> None:
    """Instead of a value of a million bytes the server gets a mark of none, with the ttl of the value."""
    received = int(node.stats()["bytes_read"])
    assert isinstance(stored(node, b"large", 10**6), Refused)
    assert int(node.stats()["bytes_read"]) - received < 10_000
    found = node.lease_get(b"large", 10)
    assert isinstance(found, Hit)
    assert found.expires_in is not None
    assert 55 < found.expires_in <= 60


def test_mark_is_stored_under_the_lease(node: MemcachedNode) -> None:
    """An invalidation that comes before the mark wins over it, too; guard: the mark's own C."""
    lease = node.lease_get(b"voided", 10)
    assert isinstance(lease, Lease)
    node.invalidate([b"voided"])
    assert isinstance(node.lease_set(lease, FLAGS, b"x" * LIMIT, 60), Refused)
    assert isinstance(node.lease_get(b"voided", 10), Lease)


def test_batch_with_values_that_are_too_large(node: MemcachedNode) -> None:
    """In a batch of lease-sets each value that does not fit is refused for itself."""
    keys = [b"batch:%d" % i for i in range(8)]
    node.invalidate(keys)
    leases = [lease for lease in (node.lease_get(key, 10) for key in keys) if isinstance(lease, Lease)]
    sizes = [10, LIMIT, LIMIT - 100, 0, LIMIT + 1, 40_000, 40_000, 5]
    fills = [Fill(lease, FLAGS, b"x" * size, 60) for lease, size in zip(leases, sizes, strict=True)]
    outcomes = node.lease_set_many(fills)
    assert [isinstance(outcome, Stored) for outcome in outcomes] == [size < LIMIT - 90 for size in sizes]


@pytest.mark.parametrize("recent", [False, True])
def test_refusal_for_want_of_memory_gives_the_lease_back(recent: bool) -> None:
    """A server that may not evict and is full refuses a value that would fit; nobody has to wait for its lease."""
    with MemcachedServer("-M", "-m", "8", "-I", "1m", recent=recent) as full:
        node = MemcachedNode(full.address)
        leases = [
            lease for lease in (node.lease_get(b"full:%d" % i, 10) for i in range(30)) if isinstance(lease, Lease)
        ]
        outcomes = [node.lease_set(lease, FLAGS, b"x" * 900_000, 60) for lease in leases]
        refused = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Refused)]
        assert refused
        assert len(refused) < 30
        reasons = {outcome.reason for outcome in outcomes if isinstance(outcome, Refused)}
        assert all("out of memory" in reason.lower() for reason in reasons), reasons
        assert not any(isinstance(node.lease_get(b"full:%d" % i, 10), Wait) for i in refused)
        assert node.errors.down_since is None
        node.close()


@pytest.mark.parametrize("url", ["memcached", "memory"])
def test_callers_of_a_value_that_is_too_large_load_without_a_lease(url: str, server: MemcachedServer) -> None:
    """Once a value was too large its callers get it from the loader, take no lease, and do not try to store it."""
    address = {"memcached": f"{server.url}?namespace=large", "memory": f"memory://?capacity={LIMIT}"}[url]
    with Cache.from_url(address) as cache:

        @cache.cached("large:{item_id}", ttl=60)
        def get_large(item_id: int) -> bytes:
            return b"x" * (LIMIT + item_id)

        assert [len(get_large(1)) for _ in range(3)] == [LIMIT + 1] * 3
        assert get_large.lookup(1).state == "uncached"
        [function] = cache.stats().functions
        assert (function.won, function.refused, function.unleased) == (1, 1, 3)


def test_memory_store_keeps_the_same_mark() -> None:
    """The memory store does the like with a value beyond its capacity."""
    store = MemoryStore(capacity=10_000)
    assert stored(store, b"item", 10_000 - 4 - memory.OVERHEAD) == Stored()
    assert isinstance(stored(store, b"item", 10_000 - 4 - memory.OVERHEAD + 1), Refused)
    assert is_mark(store.lease_get(b"item", 10))
