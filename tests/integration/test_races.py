"""Leases on a real memcached whose connections, processes and items are disturbed."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import pytest

from leasecache import Cache, ConfigError, NodeError
from leasecache.codecs import UNCACHEABLE
from leasecache.lab import MemcachedServer, TcpProxy, wait_until
from leasecache.lease import ANY_CONNECTION, EXPLICIT_CAS, Hit, Lease, Refused, Stored, Wait
from leasecache.stores import greeting
from leasecache.stores.memcached import MemcachedNode
from tests.fix_races import FLAGS, KEY, raw, won


def test_token_from_before_a_restart_is_refused(each_memcached: MemcachedServer, each_node: MemcachedNode) -> None:
    """The CAS numbers of a server start anew with it; guards: an older connection has to store, or numbers of our own.

    The raw lease-set at the end shows that the server itself would have taken the old token, if the number is its own.
    """
    old = won(each_node)
    each_memcached.kill()
    each_memcached.restart()
    new = wait_until(lambda: _lease_or_none(each_node), 60, "memcached to answer again")
    assert old.token is not None
    assert new.token is not None
    ours = new.token.cas >= EXPLICIT_CAS
    assert ours == (old.token.cas != new.token.cas)
    assert isinstance(each_node.lease_set(old, FLAGS, b"stale", 60), Refused)
    stored = raw(each_memcached, b"ms race 5 C%d F1\r\nstale\r\n" % old.token.cas)
    assert stored == (b"EX\r\n" if ours else b"HD\r\n")


def _lease_or_none(node: MemcachedNode) -> Lease | None:
    try:
        return won(node)
    except NodeError:
        return None


def test_growing_pool_does_not_cost_the_lease(each_node: MemcachedNode) -> None:
    """Connections opened after the lease-get do not refuse its store; the older one is found among them."""
    lease = won(each_node)
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        for _ in range(20):
            each_node.lease_get(b"other", 10)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert each_node.lease_set(lease, FLAGS, b"value", 60) == Stored()


def test_losers_do_not_stretch_the_lease(each_memcached: MemcachedServer, each_node: MemcachedNode) -> None:
    """However many readers poll, a stub runs out lease_for after it was won; guard: no T beside N in lease_get."""
    assert isinstance(each_node.lease_get(KEY, 2), Lease)
    deadline = time.monotonic() + 30
    while isinstance(answer := each_node.lease_get(KEY, 2), Wait):
        assert time.monotonic() < deadline
    assert isinstance(answer, Lease)


def test_foreign_value_is_neither_served_nor_overwritten(
    each_memcached: MemcachedServer, each_node: MemcachedNode
) -> None:
    """A value that another client stored with flags 0 gives a lease that cannot store."""
    raw(each_memcached, b"ms race 5 F0\r\nalien\r\n")
    lease = won(each_node)
    assert lease.token is None
    assert isinstance(each_node.lease_set(lease, FLAGS, b"mine", 60), Refused)
    assert raw(each_memcached, b"mg race v\r\n") == b"VA 5\r\nalien\r\n"


def test_value_over_item_size_max_is_refused_and_its_mark_stored(each_node: MemcachedNode) -> None:
    """A value that the server cannot hold is not sent; the next reader finds a mark instead of a lease."""
    outcome = each_node.lease_set(won(each_node), FLAGS, b"x" * 2**20, 60)
    assert isinstance(outcome, Refused)
    assert "item_size_max of 1048576 bytes" in outcome.reason
    found = each_node.lease_get(KEY, 10)
    assert isinstance(found, Hit)
    assert (found.value, found.flags) == (b"", UNCACHEABLE)


def test_value_that_is_not_bytes_costs_no_connection(each_memcached: MemcachedServer) -> None:
    """A lease-set that cannot be written is refused before it takes a connection out of the pool."""
    node = MemcachedNode(each_memcached.address, pool=2)
    for _ in range(3):
        with pytest.raises(TypeError):
            node.lease_set(won(node), FLAGS, "text", 60)  # type: ignore[arg-type]
        node.invalidate([KEY])
    assert isinstance(node.lease_get(KEY, 10), Lease)
    node.close()


def test_memcached_without_cas_is_a_configuration_error() -> None:
    """A server started with -C would refuse every store; the error names the flag."""
    with MemcachedServer("-C") as server, pytest.raises(ConfigError, match="runs with -C"):
        MemcachedNode(server.address).lease_get(KEY, 10)


def test_lease_survives_no_fork(each_memcached: MemcachedServer) -> None:
    """A forked child opens connections of its own; under a CAS of the server it cannot store the parent's lease."""
    node = MemcachedNode(each_memcached.address)
    read = node.reader(10, 0, FLAGS)
    lease = won(node)
    pid = os.fork()
    if pid == 0:
        waits = isinstance(read(KEY), Wait) and isinstance(node.lease_get(KEY, 10), Wait)
        ours = lease.token is not None and lease.token.epoch == ANY_CONNECTION
        refused = ours or isinstance(node.lease_set(lease, FLAGS, b"child", 60), Refused)
        os._exit(0 if refused and waits else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert node.lease_set(lease, FLAGS, b"parent", 60) == Stored()
    node.close()


def forked(work: Callable[[], object]) -> bool:
    """Tell whether `work` ends well in a forked child within some seconds."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            work()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_fork_while_another_thread_uses_the_memory_store() -> None:
    """A child does not inherit a lock that nobody there would release, nor leases that nobody there holds."""
    with Cache.from_url("memory://") as cache:

        @cache.cached("row:{row_id}", ttl=60, wait_for=60)
        def get_row(row_id: int) -> int:
            return row_id

        cache.lease_get(get_row.key(1))  # by a thread that is not there after the fork
        with cache.driver().store._lock:  # type: ignore[attr-defined]
            assert forked(lambda: get_row(1))


def test_fork_while_another_thread_marks_the_node_down() -> None:
    """A child can mark a node down though the parent was doing it when it forked."""

    def fail(node: MemcachedNode) -> None:
        with pytest.raises(NodeError):
            node.lease_get(KEY, 10)

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        node = MemcachedNode(f"127.0.0.1:{closed.getsockname()[1]}")
        with node._down._lock:
            assert forked(lambda: fail(node))


def test_cut_connection_loses_the_lease_not_the_safety(monkeypatch: pytest.MonkeyPatch) -> None:
    """When every connection from before a lease is cut, its store is refused and the key can be won again later."""
    monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    with MemcachedServer() as memcached, TcpProxy(memcached.port) as proxy:
        node = MemcachedNode(proxy.address)
        lease = node.lease_get(KEY, 1)
        assert isinstance(lease, Lease)
        proxy.reset()
        assert isinstance(node.lease_set(lease, FLAGS, b"value", 60), Refused)
        assert wait_until(lambda: isinstance(node.lease_get(KEY, 1), Lease), 60, "the lost lease to run out")
        node.close()


def test_cut_connection_does_not_lose_a_lease_of_our_own_number() -> None:
    """A CAS that we chose is stored under over whatever connection there is."""
    with MemcachedServer(recent=True) as memcached, TcpProxy(memcached.port) as proxy:
        node = MemcachedNode(proxy.address)
        lease = won(node)
        proxy.reset()
        assert node.lease_set(lease, FLAGS, b"value", 60) == Stored()
        node.close()


def test_stored_value_is_seen_by_another_process(each_memcached: MemcachedServer, each_node: MemcachedNode) -> None:
    """Two nodes objects stand for two processes: what one stores the other hits."""
    other = MemcachedNode(each_memcached.address)
    assert each_node.lease_set(won(each_node), FLAGS, b"value", 60) == Stored()
    assert isinstance(other.lease_get(KEY, 10), Hit)
    other.close()
