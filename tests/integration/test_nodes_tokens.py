"""Tokens of CAS numbers that we draw: on servers that take them, and behind proxies that nothing else makes safe."""

import os
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from leasecache import ConfigError
from leasecache.lab import MemcachedServer, TcpProxy, wait_until
from leasecache.lease import EXPLICIT_CAS, Hit, Lease, Refused, Stale, Stored, Wait
from leasecache.stores import greeting
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.pool import NUMBERS

FLAGS = 0x10000001
AHEAD = 2**31 - 1
MAKES_CAS = re.compile(r"<\d+ (mg|ms|md .* I)\b.*")  # in the log of memcached -vv


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemcachedServer]:
    """A memcached that counts its CAS numbers itself, or is taken for one because of its version."""
    monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    with MemcachedServer("-vv") as server:
        yield server


@pytest.fixture
def make_node() -> Iterator[Callable[..., MemcachedNode]]:
    """Make nodes that are closed in the end."""
    made: list[MemcachedNode] = []

    def make(address: str, **options: object) -> MemcachedNode:
        made.append(MemcachedNode(address, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for node in made:
        node.close()


def won(node: MemcachedNode, key: bytes = b"item") -> Lease:
    answer = node.lease_get(key, 10)
    assert isinstance(answer, Lease)
    return answer


def use_every_command(node: MemcachedNode) -> None:
    """Make and change an item in every way there is."""
    read = node.reader(10, AHEAD, FLAGS)
    assert isinstance(read(b"a"), Lease)  # over a new connection; the next goes the short way
    waiting = read(b"a")
    assert isinstance(waiting, Wait)
    assert waiting.token is not None
    thief = node.steal(b"a", waiting.token, 10)
    assert isinstance(thief, Lease)
    assert node.lease_set(thief, FLAGS, b"value", 60) == Stored()
    node.invalidate([b"a"], 30)
    node.release(won(node, b"a"))
    node.batch_reader(10, 0, FLAGS)([b"a", b"b"])
    assert isinstance(node.lease_get(b"a", 10), Stale)


def test_every_command_that_makes_a_cas_number_carries_one_of_ours(make_node: Callable[..., MemcachedNode]) -> None:
    """Whatever makes a CAS number says which, and never the same twice; guard: the mark in each of these requests."""
    with MemcachedServer("-vv", recent=True) as server:
        use_every_command(make_node(server.address))
        requests = [found[0] for found in MAKES_CAS.finditer(server.log())]
        assert len(requests) >= 10
        marks = [re.search(r" E(\d+)", request) for request in requests]
        assert all(marks), requests
        numbers = [int(mark[1]) for mark in marks if mark]
        assert len(set(numbers)) == len(numbers)
        assert min(numbers) >= EXPLICIT_CAS


def test_servers_that_do_not_know_the_mark_do_not_get_it(
    old: MemcachedServer, make_node: Callable[..., MemcachedNode]
) -> None:
    """An older memcached, which refuses unknown flags, is asked without them; the version decides."""
    use_every_command(make_node(old.address))
    assert MAKES_CAS.search(old.log())
    assert not re.search(r" E\d+", old.log())


def drawn(count: int) -> list[int]:
    return [NUMBERS.draw() for _ in range(count)]


def test_numbers_differ_between_threads_and_processes_and_after_a_fork() -> None:
    """No number is drawn twice, whoever draws, though the application seeds its own random numbers alike everywhere."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(drawn(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(2):
        receiving, sending = os.pipe()
        pid = os.fork()
        if pid == 0:
            random.seed(1)
            os.write(sending, " ".join(map(str, drawn(200))).encode())
            os._exit(0)
        os.close(sending)
        with open(receiving) as pipe:
            found += map(int, pipe.read().split())
        assert os.waitpid(pid, 0)[1] == 0
    random.seed(1)
    found += drawn(200)
    assert len(found) == len(set(found)) == 8600
    assert EXPLICIT_CAS <= min(found) <= max(found) < 2 * EXPLICIT_CAS


def restarted_behind(proxy: TcpProxy, server: MemcachedServer, node: MemcachedNode) -> tuple[Lease, Lease]:
    """Win a lease, restart the server, win again over the connection that the proxy has kept; return both."""
    before = won(node)
    server.kill()
    wait_until(lambda: not proxy.connections, 60, "the proxy to notice")
    server.start()
    after = won(node)
    assert node.connections == (1, 1)
    return before, after


def test_behind_a_proxy_an_old_connection_proves_nothing(
    old: MemcachedServer, make_node: Callable[..., MemcachedNode]
) -> None:
    """Where a proxy keeps its clients, a token of a server's own number is good again after a restart, unnoticed."""
    with TcpProxy(old.port, reconnects=True) as proxy:
        node = make_node(proxy.address)
        before, after = restarted_behind(proxy, old, node)
        assert before.token == after.token
        assert node.lease_set(before, FLAGS, b"stale", 60) == Stored()


def test_behind_a_proxy_our_own_numbers_are_safe(make_node: Callable[..., MemcachedNode]) -> None:
    """The same on a server that takes our numbers: the token from before the restart is refused, the new one good."""
    with MemcachedServer(recent=True) as server, TcpProxy(server.port, reconnects=True) as proxy:
        node = make_node(proxy.address, proxied=True)
        before, after = restarted_behind(proxy, server, node)
        assert isinstance(node.lease_set(before, FLAGS, b"stale", 60), Refused)
        assert node.lease_set(after, FLAGS, b"value", 60) == Stored()


def test_behind_a_proxy_a_number_of_the_server_cannot_store(make_node: Callable[..., MemcachedNode]) -> None:
    """A lease on an item whose number the server has counted, for another client, is refused behind a proxy.

    Guard: no connection may present it there; the same token is good over a direct connection.
    """
    with MemcachedServer(recent=True) as server:
        for proxied in (False, True):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as foreign:
                foreign.sendall(b"ms item 3 T60 F%d\r\nold\r\nmd item I T60\r\n" % FLAGS)
                assert foreign.makefile("rb").read(8) == b"HD\r\nHD\r\n"
            node = make_node(server.address, proxied=proxied)
            lease = won(node)
            assert lease.value == b"old"
            assert isinstance(node.lease_set(lease, FLAGS, b"new", 60), Refused if proxied else Stored)
            node.invalidate([b"item"])


def test_behind_a_proxy_an_old_memcached_is_a_configuration_error(
    old: MemcachedServer, make_node: Callable[..., MemcachedNode]
) -> None:
    """A server too old for our numbers is refused where they are all there is; the error names both ways out."""
    with pytest.raises(ConfigError, match=r"is version 1\.6\.\d+; behind a proxy .* upgrade it or connect directly"):
        make_node(old.address, proxied=True).lease_get(b"item", 10)


def test_lease_is_stored_over_a_connection_that_is_newer(make_node: Callable[..., MemcachedNode]) -> None:
    """A token of our own number survives the loss of every connection from its time."""
    with MemcachedServer(recent=True) as server:
        node = make_node(server.address)
        lease = won(node)
        node.close()
        assert node.lease_set(lease, FLAGS, b"value", 60) == Stored()
        assert isinstance(node.lease_get(b"item", 10), Hit)
