"""A node that fails: the application gets its values from its loaders, within bounds, and the figures say why."""

import contextlib
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest

from leasecache import Cache, Lease, NodeError, NodeTimeout, Refused, Stored
from leasecache.lab import MemcachedServer, TcpProxy, free_port, wait_until
from leasecache.stores.memcached import MemcachedNode
from tests.fix_fork import in_a_child

FLAGS = 0x10000001
TIMES = "timeout=0.3&connect_timeout=0.3"
CALLERS = 8
BOUND = 30.0  # s: far more than these calls take, far less than calls that hang
SETTINGS = b"STAT cas_enabled yes\r\nSTAT item_size_max 1048576\r\nEND\r\n"


class Application:
    """A cached function that remembers how many of its loads ran at once for one key."""

    def __init__(self, cache: Cache) -> None:
        self.running: Counter[int] = Counter()
        self.most = 0
        self._lock = threading.Lock()
        self.get_item = cache.cached("item:{item_id}", ttl=60)(self.load)

    def load(self, item_id: int) -> int:
        with self._lock:
            self.running[item_id] += 1
            self.most = max(self.most, self.running[item_id])
        time.sleep(0.005)
        with self._lock:
            self.running[item_id] -= 1
        return item_id * 10

    def storm(self) -> list[int]:
        """Call for one key from several threads at once, some times each; return what they got."""
        found: list[int] = []
        barrier = threading.Barrier(CALLERS)

        def call() -> None:
            barrier.wait()
            found.extend(self.get_item(7) for _ in range(4))

        threads = [threading.Thread(target=call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@contextmanager
def nothing() -> Iterator[str]:
    """A port that nobody listens on."""
    yield f"127.0.0.1:{free_port()}"


@contextmanager
def full_backlog() -> Iterator[str]:
    """A server that accepts nobody and whose queue is full: packets of whoever else connects are dropped."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def behind(disturb: Callable[[TcpProxy], None]) -> Iterator[str]:
    """A memcached behind a proxy that disturbs."""
    with MemcachedServer() as server, TcpProxy(server.port) as proxy:
        disturb(proxy)
        yield proxy.address


class _Handler(socketserver.StreamRequestHandler):
    """Greets like memcached, answers every other line with `server.answer` and hangs up."""

    server: Any

    def handle(self) -> None:
        for line in self.rfile:
            if line.startswith(b"version"):
                self.wfile.write(b"VERSION 1.6.45\r\n")
            elif line.startswith(b"stats"):
                self.wfile.write(SETTINGS)
            else:
                self.wfile.write(self.server.answer)
                return


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that answers every lease-get alike."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.answer = answer  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


FAULTS: dict[str, tuple[Callable[[], AbstractContextManager[str]], str]] = {
    "down": (nothing, "broken"),
    "full backlog": (full_backlog, "timeout"),
    "swallows what it gets": (lambda: behind(TcpProxy.drop), "timeout"),
    "answers a byte per 100 ms": (lambda: behind(lambda proxy: proxy.drip(0.1, "replies")), "timeout"),
    "answers garbage": (lambda: answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "protocol"),
    "ends amid a value": (lambda: answering(b"VA 10 c1 f268435457 t9\r\nabc"), "broken"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_values_come_from_the_loader(fault: str) -> None:
    """Whatever ails the node, callers get what the loader returns, one load at a time per key, and soon."""
    enter, kind = FAULTS[fault]
    times = TIMES if kind == "timeout" else ""
    with enter() as address, Cache.from_url(f"memcached://{address}?{times}") as cache:
        application = Application(cache)
        began = time.monotonic()
        assert application.storm() == [70] * (4 * CALLERS)
        assert time.monotonic() - began < BOUND
        assert application.most == 1
        [node], [function] = cache.stats().nodes, cache.stats().functions
        assert node.errors[kind] >= 1, node.errors
        assert node.errors["down"] >= 1, node.errors
        assert not node.up
        assert function.unleased >= 1


def test_node_that_answers_again_is_used_again() -> None:
    """When a node that swallowed everything answers again, its values are hits again and it counts as up."""
    with (
        MemcachedServer() as server,
        TcpProxy(server.port) as proxy,
        Cache.from_url(f"memcached://{proxy.address}?{TIMES}") as cache,
    ):
        application = Application(cache)
        application.get_item(7)
        proxy.drop()
        assert application.storm() == [70] * (4 * CALLERS)
        proxy.flow()
        get_item = application.get_item
        wait_until(lambda: get_item.lookup(7).state == "fresh", BOUND, "the node to be believed again")
        assert cache.stats().nodes[0].up


def test_value_from_before_a_cut_is_served_until_its_ttl_is_over() -> None:
    """Without a guard an invalidation that did not reach the node is an error of its caller, and the value stays."""
    with (
        MemcachedServer() as server,
        TcpProxy(server.port) as proxy,
        Cache.from_url(f"memcached://{proxy.address}?{TIMES}", guard="none") as cache,
    ):

        @cache.cached("item:{item_id}", ttl=3, jitter=0)
        def get_item(item_id: int) -> str:
            return rows[item_id]

        rows = {1: "old"}
        assert get_item(1) == "old"
        proxy.drop()
        rows[1] = "new"
        with pytest.raises(NodeError):
            get_item.invalidate(1)
        proxy.flow()
        wait_until(lambda: get_item.lookup(1) if get_item.lookup(1).state == "fresh" else None, BOUND, "the node")
        wait_until(lambda: get_item(1) == "new", BOUND, "the end of the ttl")


@pytest.fixture
def node(memcached: MemcachedServer) -> Iterator[MemcachedNode]:
    """A node with six idle connections."""
    opened = MemcachedNode(memcached.address)
    with_six_idle(opened)
    yield opened
    opened.close()


def with_six_idle(node: MemcachedNode) -> None:
    """Open six connections."""
    for connection in [node._pool.acquire() for _ in range(6)]:
        node._pool.release(connection)
    assert node.connections == (6, 6)


def test_restart_costs_no_failed_call(memcached: MemcachedServer, node: MemcachedNode) -> None:
    """After a restart the first call finds that every idle connection has ended; guard: `Pool.drop_ended`."""
    memcached.restart()
    for i in range(12):
        assert isinstance(node.lease_get(b"item:%d" % i, 10), Lease)
    assert node.errors.broken == 1
    assert node.connections == (1, 1)


def test_one_dead_connection_costs_no_other(node: MemcachedNode) -> None:
    """A connection that ended by itself is replaced by one that is idle, and none of these is closed."""
    node._pool.idle[-1].sock.shutdown(socket.SHUT_RDWR)  # the next that is taken
    assert isinstance(node.lease_get(b"item", 10), Lease)
    assert node.errors.broken == 1
    assert node.connections == (5, 5)


def test_restart_under_load_costs_no_failed_call(memcached: MemcachedServer, node: MemcachedNode) -> None:
    """Callers that talk to a node while it is restarted may fail; those that begin when it is back do not."""
    over = threading.Event()

    def read(number: int) -> None:
        while not over.is_set():
            with contextlib.suppress(NodeError):
                node.lease_get(b"item:%d" % number, 10)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    memcached.restart()
    over.set()
    for thread in threads:
        thread.join()
    wait_until(lambda: _answers(node), BOUND, "the probe")
    before = node.errors.broken + node.errors.down
    assert all(_answers(node) for _ in range(20))
    assert node.errors.broken + node.errors.down <= before + 1  # one idle connection may have been found dead


def _answers(node: MemcachedNode) -> bool:
    try:
        node.lease_get(b"item", 10)
    except NodeError:
        return False
    return True


def test_connections_that_a_timeout_makes_suspect_are_closed(memcached: MemcachedServer) -> None:
    """A node that does not answer has ended no connection, yet each could cost a time limit; guard: `drop_idle`."""
    node = MemcachedNode(memcached.address, timeout=1)
    with_six_idle(node)
    memcached.pause()
    try:
        with pytest.raises(NodeTimeout):
            node.lease_get(b"item", 10)
    finally:
        memcached.resume()
    assert node.connections == (0, 0)
    node.close()


def test_refusal_while_the_node_is_away(memcached: MemcachedServer, node: MemcachedNode) -> None:
    """A lease from before a restart is refused when the node is back, and an error before that."""
    lease = node.lease_get(b"item", 10)
    assert isinstance(lease, Lease)
    memcached.kill()
    outcome = _stored(node, lease)
    assert isinstance(outcome, (NodeError, Refused))
    memcached.start()
    assert isinstance(wait_until(lambda: _refused(node, lease), BOUND, "the node"), Refused)


def _stored(node: MemcachedNode, lease: Lease) -> object:
    try:
        return node.lease_set(lease, FLAGS, b"value", 60)
    except NodeError as error:
        return error


def _refused(node: MemcachedNode, lease: Lease) -> Refused | None:
    outcome = _stored(node, lease)
    assert outcome != Stored()
    return outcome if isinstance(outcome, Refused) else None


def test_fork_while_connections_are_busy(memcached: MemcachedServer) -> None:
    """A child shares no socket with its parent, not even one that another thread talks over; guard: `Pool.forget`."""
    with TcpProxy(memcached.port) as proxy:
        node = MemcachedNode(proxy.address)
        node.lease_get(b"warm", 10)
        proxy.stall("replies")
        found: list[object] = []
        busy = threading.Thread(target=lambda: found.append(node.lease_get(b"busy", 10)))
        busy.start()
        wait_until(lambda: not node._pool.idle, BOUND, "the connection to be taken")
        sockets = {connection.sock.fileno() for connection in node._pool._open}
        child = in_a_child(lambda: f"{node.connections} {[_is_socket(number) for number in sockets]}")
        assert child == f"{(0, 0)} {[False]}"
        proxy.flow()
        busy.join()
        assert isinstance(found[0], Lease)
        node.close()


def _is_socket(descriptor: int) -> bool:
    try:
        socket.socket(fileno=descriptor).detach()
    except OSError:
        return False
    return True


EXHAUSTED = """
import json, resource, sys, threading
from leasecache import Cache, NodeError
url = sys.argv[1]
cache = Cache.from_url(url)
fresh = Cache.from_url(url)
def define(cache):
    @cache.cached("item:{item_id}", ttl=60)
    def get_item(item_id: int) -> int:
        return item_id
    return get_item
get_item, get_fresh = define(cache), define(fresh)
get_item.get_many(range(20))
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
hoard = []
try:
    while True:
        hoard.append(open("/dev/null"))
except OSError:
    pass
states = []
def read():
    states.extend(get_item.lookup(i).state for i in range(20))
threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
without = [get_fresh(i) for i in range(5)]
errors = fresh.stats().nodes[0].errors
hoard.clear()
import time
deadline = time.monotonic() + 60
while get_fresh.lookup(0).state != "fresh" and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps([sorted(set(states)), cache.stats().nodes[0].up, without, errors["broken"] > 0,
                  get_fresh.lookup(0).state]))
"""


def test_no_file_descriptor_left(memcached: MemcachedServer) -> None:
    """Without descriptors the open connections are shared, and a cache that has none loads; then all is as before.

    Guard: in `Pool.acquire`, what this machine lacks does not mark the node down while a connection is open.
    """
    command = [sys.executable, "-c", EXHAUSTED, f"{memcached.url}?timeout=30&connect_timeout=30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["fresh"], True, [0, 1, 2, 3, 4], True, "fresh"]
