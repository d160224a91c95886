"""The lab's proxy disturbs a connection in exactly the way it is told."""

import socket
from collections.abc import Iterator

import pytest

from leasecache.lab import MemcachedServer, TcpProxy
from leasecache.lab.servers import HOST


@pytest.fixture
def proxy(memcached: MemcachedServer) -> Iterator[TcpProxy]:
    """A proxy before a memcached."""
    with TcpProxy(memcached.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    """A connection through the proxy that has been used once."""
    with socket.create_connection((HOST, proxy.port), timeout=60) as client:
        assert ask(client, b"mn\r\n") == b"MN\r\n"
        yield client


def ask(client: socket.socket, request: bytes) -> bytes:
    client.sendall(request)
    return client.recv(100)


def silent(client: socket.socket) -> bool:
    """Tell whether nothing arrives for a moment; there is no event to wait for."""
    client.settimeout(0.1)
    try:
        client.recv(100)
    except TimeoutError:
        return True
    finally:
        client.settimeout(60)
    return False


def test_stalled_bytes_arrive_once_they_may_flow(proxy: TcpProxy, client: socket.socket) -> None:
    """A stalled request is answered after the stall, not lost."""
    proxy.stall()
    client.sendall(b"mn\r\n")
    assert silent(client)
    proxy.flow()
    assert client.recv(100) == b"MN\r\n"


def test_a_dropped_reply_leaves_the_request_executed(
    proxy: TcpProxy, client: socket.socket, memcached: MemcachedServer
) -> None:
    """With replies dropped a store happens and its answer never comes; later answers do."""
    proxy.drop("replies")
    client.sendall(b"set k 0 0 1\r\nv\r\n")
    assert silent(client)
    proxy.flow()
    assert ask(client, b"get k\r\n") == b"VALUE k 0 1\r\nv\r\nEND\r\n"


def test_dropped_requests_never_reach_the_server(proxy: TcpProxy, client: socket.socket) -> None:
    """With requests dropped nothing is executed."""
    proxy.drop("requests")
    client.sendall(b"set k 0 0 1\r\nv\r\n")
    assert silent(client)
    proxy.flow()
    assert ask(client, b"get k\r\n") == b"END\r\n"


def test_reset_ends_open_connections_and_admits_new_ones(proxy: TcpProxy, client: socket.socket) -> None:
    """A reset is seen as ECONNRESET by a reader, and the next connection works."""
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with socket.create_connection((HOST, proxy.port), timeout=60) as another:
        assert ask(another, b"mn\r\n") == b"MN\r\n"


def test_reset_ends_a_stalled_connection_too(proxy: TcpProxy, client: socket.socket) -> None:
    """A connection with bytes held back is reset like any other."""
    proxy.stall()
    client.sendall(b"mn\r\n")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_dead_server_closes_the_connection(
    proxy: TcpProxy, client: socket.socket, memcached: MemcachedServer
) -> None:
    """The proxy hides neither the death of its server nor that nobody listens."""
    memcached.kill()
    assert client.recv(100) == b""
    with socket.create_connection((HOST, proxy.port), timeout=60) as another:
        assert another.recv(100) == b""
