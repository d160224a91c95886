"""The races of leases, each on a real memcached. Each test names the guard without which it fails."""

import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from leasecache import Cache, ConfigError, NodeError
from leasecache.codecs import UNCACHEABLE
from leasecache.lab import MemcachedServer, TcpProxy, wait_until
from leasecache.lease import ANY_CONNECTION, EXPLICIT_CAS, Hit, Lease, Refused, Stored, Wait
from leasecache.stores import greeting
from leasecache.stores.memcached import MemcachedNode

KEY = b"race"
FLAGS = 0x10000001


@pytest.fixture(params=[False, True], ids=["CAS of the server", "CAS of ours"])
def memcached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemcachedServer]:
    """A memcached that counts its CAS numbers itself (or is taken for one by its version), and one that takes ours."""
    if not request.param:
        monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    with MemcachedServer(recent=request.param) as server:
        yield server


@pytest.fixture
def node(memcached: MemcachedServer) -> Iterator[MemcachedNode]:
    """A node of a memcached that the test may break."""
    opened = MemcachedNode(memcached.address, timeout=1)
    yield opened
    opened.close()


def won(node: MemcachedNode) -> Lease:
    answer = node.lease_get(KEY, 10)
    assert isinstance(answer, Lease)
    return answer


def raw(server: MemcachedServer, request: bytes) -> bytes:
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request + b"mn\r\n")
        answer = b""
        while not answer.endswith(b"MN\r\n"):
            answer += connection.recv(4096)
    return answer.removesuffix(b"MN\r\n")


def test_token_from_before_a_restart_is_refused(memcached: MemcachedServer, node: MemcachedNode) -> None:
    """The CAS numbers of a server start anew with it; guards: an older connection has to store, or numbers of our own.

    The raw lease-set at the end shows that the server itself would have taken the old token, if the number is its own.
    """
    old = won(node)
    memcached.kill()
    memcached.restart()
    new = wait_until(lambda: _lease_or_none(node), 5, "memcached to answer again")
    assert old.token is not None
    assert new.token is not None
    ours = new.token.cas >= EXPLICIT_CAS
    assert ours == (old.token.cas != new.token.cas)
    assert isinstance(node.lease_set(old, FLAGS, b"stale", 60), Refused)
    stored = raw(memcached, b"ms race 5 C%d F1\r\nstale\r\n" % old.token.cas)
    assert stored == (b"EX\r\n" if ours else b"HD\r\n")


def _lease_or_none(node: MemcachedNode) -> Lease | None:
    try:
        return won(node)
    except NodeError:
        return None


def test_growing_pool_does_not_cost_the_lease(node: MemcachedNode) -> None:
    """Connections opened after the lease-get do not refuse its store; the older one is found among them."""
    lease = won(node)
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        for _ in range(20):
            node.lease_get(b"other", 10)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert node.lease_set(lease, FLAGS, b"value", 60) == Stored()


def test_caller_after_an_invalidation_does_not_join_the_older_load(memcached: MemcachedServer) -> None:
    """A load that began before an invalidation answers only callers from before it; guard: the token in the answer."""
    rows = {1: "old"}
    began, go_on = threading.Event(), threading.Event()
    with Cache.from_url(memcached.url) as cache:

        @cache.cached("row:{row_id}", ttl=60)
        def get_row(row_id: int) -> str:
            value = rows[row_id]
            if value == "old":
                began.set()
                assert go_on.wait(10)
            return value

        seen: list[str] = []
        first = threading.Thread(target=lambda: seen.append(get_row(1)))
        first.start()
        assert began.wait(10)
        rows[1] = "new"
        get_row.invalidate(1)
        assert get_row(1) == "new"
        go_on.set()
        first.join()
        assert seen == ["old"]
        assert get_row(1) == "new"


def test_waiter_of_another_token_does_not_join(memcached: MemcachedServer) -> None:
    """A caller that finds another process's lease polls for it, though this process still loads under a void one."""
    rows = {1: "old"}
    began, go_on = threading.Event(), threading.Event()
    with Cache.from_url(memcached.url) as cache, Cache.from_url(memcached.url) as elsewhere:

        @cache.cached("row:{row_id}", ttl=60)
        def get_row(row_id: int) -> str:
            value = rows[row_id]
            began.set()
            assert go_on.wait(10)
            return value

        seen: list[str] = []
        first = threading.Thread(target=lambda: seen.append(get_row(1)))
        first.start()
        assert began.wait(10)
        get_row.invalidate(1)
        taken = elsewhere.lease_get(get_row.key(1))
        assert isinstance(taken, Lease)
        second = threading.Thread(target=lambda: seen.append(get_row(1)))
        second.start()
        flights = cache.driver().local.flights
        wait_until(lambda: sum(map(len, flights._by_key.values())) == 2, 5, "the second caller to wait by itself")
        go_on.set()
        first.join()
        assert seen == ["old"]
        cache.driver().store.release(taken)
        second.join()
        assert seen == ["old", "old"]


def test_losers_do_not_stretch_the_lease(memcached: MemcachedServer, node: MemcachedNode) -> None:
    """However many readers poll, a stub runs out lease_for after it was won; guard: no T beside N."""
    assert isinstance(node.lease_get(KEY, 2), Lease)
    deadline = time.monotonic() + 10
    while isinstance(answer := node.lease_get(KEY, 2), Wait):
        assert time.monotonic() < deadline
    assert isinstance(answer, Lease)


def test_foreign_value_is_neither_served_nor_overwritten(memcached: MemcachedServer, node: MemcachedNode) -> None:
    """A value that another client stored with flags 0 gives a lease that cannot store."""
    raw(memcached, b"ms race 5 F0\r\nalien\r\n")
    lease = won(node)
    assert lease.token is None
    assert isinstance(node.lease_set(lease, FLAGS, b"mine", 60), Refused)
    assert raw(memcached, b"mg race v\r\n") == b"VA 5\r\nalien\r\n"


def test_value_over_item_size_max_is_refused_and_its_mark_stored(node: MemcachedNode) -> None:
    """A value that the server cannot hold is not sent; the next reader finds a mark instead of a lease."""
    outcome = node.lease_set(won(node), FLAGS, b"x" * 2**20, 60)
    assert isinstance(outcome, Refused)
    assert "item_size_max of 1048576 bytes" in outcome.reason
    found = node.lease_get(KEY, 10)
    assert isinstance(found, Hit)
    assert (found.value, found.flags) == (b"", UNCACHEABLE)


def test_value_that_is_not_bytes_costs_no_connection(memcached: MemcachedServer) -> None:
    """A lease-set that cannot be written is refused before it takes a connection out of the pool."""
    node = MemcachedNode(memcached.address, pool=2)
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


def test_lease_survives_no_fork(memcached: MemcachedServer) -> None:
    """A forked child opens connections of its own; under a CAS of the server it cannot store the parent's lease."""
    node = MemcachedNode(memcached.address)
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
        signal.alarm(10)
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
        node = MemcachedNode(proxy.address, timeout=1)
        lease = node.lease_get(KEY, 1)
        assert isinstance(lease, Lease)
        proxy.reset()
        assert isinstance(node.lease_set(lease, FLAGS, b"value", 60), Refused)
        assert wait_until(lambda: isinstance(node.lease_get(KEY, 1), Lease), 5, "the lost lease to run out")
        node.close()


def test_cut_connection_does_not_lose_a_lease_of_our_own_number() -> None:
    """A CAS that we chose is stored under over whatever connection there is."""
    with MemcachedServer(recent=True) as memcached, TcpProxy(memcached.port) as proxy:
        node = MemcachedNode(proxy.address, timeout=1)
        lease = won(node)
        proxy.reset()
        assert node.lease_set(lease, FLAGS, b"value", 60) == Stored()
        node.close()


@pytest.mark.parametrize("stale_for", [0, 20])
def test_no_hit_is_older_than_a_completed_invalidation(memcached: MemcachedServer, stale_for: int) -> None:
    """Readers and writers at random, memcached killed now and then: no fresh value predates a completed invalidation.

    Guards: C on every lease-set, and the connection rule. Without either a seed fails within seconds.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    history = _History(memcached, stale_for, random.Random(seed))
    history.run(seconds=4)
    assert not history.violations, f"seed {seed}: {history.violations[:3]}"
    assert history.hits > 100, f"seed {seed}: the cache was hardly used"


class _History:
    """Versioned rows, written and invalidated by some threads while others read them through the cache."""

    def __init__(self, server: MemcachedServer, stale_for: int, rng: random.Random) -> None:
        self.server = server
        self.rng = rng
        self.rows = [0] * 4
        self.invalidated = [0] * 4  # the version that the last completed invalidation made visible
        self.violations: list[str] = []
        self.hits = 0
        self.over = threading.Event()
        self.cache = Cache.from_url(f"{server.url}?timeout=0.5")

        @self.cache.cached("row:{row_id}", ttl=60, stale_for=stale_for, wait_for=0.5, lease_for=1)
        def get_row(row_id: int) -> int:
            version = self.rows[row_id]
            time.sleep(random.random() * 0.003)  # the database's answer is on its way
            return version

        self.get_row = get_row

    def run(self, seconds: float) -> None:
        threads = [threading.Thread(target=self.read, args=(random.Random(self.rng.random()),)) for _ in range(6)]
        threads += [
            threading.Thread(target=self.write, args=(row, random.Random(self.rng.random()))) for row in range(4)
        ]
        threads.append(threading.Thread(target=self.restart, args=(random.Random(self.rng.random()),)))
        for thread in threads:
            thread.start()
        self.over.wait(seconds)
        self.over.set()
        for thread in threads:
            thread.join()
        self.cache.close()

    def read(self, rng: random.Random) -> None:
        while not self.over.is_set():
            row = rng.randrange(4)
            least = self.invalidated[row]
            entry = self.get_row.lookup(row)
            self.hits += entry.state == "fresh"
            if entry.state != "stale" and entry.value < least:
                self.violations.append(f"row {row}: {entry} after version {least} was invalidated")

    def write(self, row: int, rng: random.Random) -> None:
        while not self.over.is_set():
            self.rows[row] += 1
            version = self.rows[row]
            while not self.invalidate(row):
                if self.over.wait(0.001):
                    return
            self.invalidated[row] = version
            self.over.wait(rng.random() * 0.02)

    def invalidate(self, row: int) -> bool:
        try:
            self.get_row.invalidate(row)
        except NodeError:
            return False
        return True

    def restart(self, rng: random.Random) -> None:
        while not self.over.wait(0.3 + rng.random() * 0.5):
            self.server.kill()
            self.server.restart()


def test_stored_value_is_seen_by_another_process(memcached: MemcachedServer, node: MemcachedNode) -> None:
    """Two nodes objects stand for two processes: what one stores the other hits."""
    other = MemcachedNode(memcached.address)
    assert node.lease_set(won(node), FLAGS, b"value", 60) == Stored()
    assert isinstance(other.lease_get(KEY, 10), Hit)
    other.close()
