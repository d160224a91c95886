"""Figures of a cache on real servers: errors of nodes by kind, nodes that are down, connections."""

from collections.abc import Iterator

import pytest

from leasecache import NodeError
from leasecache.config import open_store
from leasecache.lab import MemcachedServer, TcpProxy, free_port, wait_until
from leasecache.lease import Lease, Stored
from leasecache.metrics import NodeFigures, snapshot
from leasecache.stores.base import Store

SOON = 20.0  # s


def figures(store: Store) -> NodeFigures:
    """The figures of a store's only node."""
    [node] = snapshot([], store).nodes
    return node


@pytest.fixture
def proxy(shared_memcached: MemcachedServer) -> Iterator[TcpProxy]:
    """A way to memcached that the test may disturb."""
    with TcpProxy(shared_memcached.port) as made:
        yield made


@pytest.fixture
def store(proxy: TcpProxy) -> Iterator[Store]:
    """A store behind the proxy."""
    opened = open_store(f"memcached://{proxy.address}?timeout=1")
    yield opened
    opened.close()


def answers(store: Store, key: bytes) -> bool:
    """Whether the node does what it is asked."""
    try:
        store.lease_get(key, 10)
    except NodeError:
        return False
    return True


def test_connections_are_counted(store: Store, key: bytes) -> None:
    """Nothing is open before first use; then one connection is, and is idle between exchanges."""
    opened = [figures(store).connections_open, figures(store).connections_idle]
    store.lease_get(key, 10)
    now = figures(store)
    assert (opened, now.connections_open, now.connections_idle) == ([0, 0], 1, 1)
    assert (now.up, now.down_for, sum(now.errors.values())) == (True, None, 0)


def test_a_broken_connection(store: Store, proxy: TcpProxy, key: bytes) -> None:
    """A connection that died is an error though the exchange succeeds over another one, for plain reads as well."""
    for read in (lambda: store.lease_get(key, 10), lambda: store.reader(10, 0, 1)(key)):
        assert read() is not None
        before = figures(store).errors["broken"]
        proxy.reset()
        assert read() is not None
        assert figures(store).errors["broken"] == before + 1
        assert figures(store).up


def test_a_node_that_is_not_there(key: bytes) -> None:
    """A refused connection is counted and marks the node down; whoever is not let through meanwhile counts as down."""
    store = open_store(f"memcached://127.0.0.1:{free_port()}")
    assert not answers(store, key)
    assert not answers(store, key)
    node = figures(store)
    assert node.errors["broken"] >= 1
    assert node.errors["broken"] + node.errors["down"] == 2  # a second probe, when the first is long over
    assert node.down_for is not None
    assert not node.up


def test_a_node_that_does_not_answer(store: Store, proxy: TcpProxy, key: bytes) -> None:
    """A timeout marks the node down, for ever longer, until it answers again."""
    store.lease_get(key, 10)
    proxy.stall()
    assert not answers(store, key)
    first = figures(store)
    assert (first.errors["timeout"], first.errors["broken"], first.up) == (1, 0, False)
    wait_until(lambda: not answers(store, key) and figures(store).errors["down"] > 0, SOON, "a caller to fail fast")
    later = figures(store)
    assert first.down_for is not None
    assert later.down_for is not None
    assert later.down_for > first.down_for
    proxy.flow()
    wait_until(lambda: answers(store, key), SOON, "the node to be believed again")
    assert (figures(store).up, figures(store).down_for) == (True, None)


def test_an_answer_that_is_none(store: Store, key: bytes) -> None:
    """Bytes that the protocol does not allow are an error of their own kind."""
    lease = store.lease_get(key, 10)
    assert isinstance(lease, Lease)
    assert isinstance(store.lease_set(lease, 1, b"x", 60), Stored)
    with pytest.raises(NodeError):
        store.lease_get(b"two words", 10)  # the server takes the second one for flags
    assert figures(store).errors["protocol"] == 1
