"""The lab's memcached and Redis can be killed, paused and restarted where they are."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from leasecache.lab import MemcachedServer, RedisServer, ServerError
from leasecache.lab import servers as lab_servers
from leasecache.lab.servers import HOST

PING = {MemcachedServer: (b"mn\r\n", b"MN\r\n"), RedisServer: (b"PING\r\n", b"+PONG\r\n")}

CacheServer = MemcachedServer | RedisServer


@pytest.fixture(params=[MemcachedServer, RedisServer])
def server(request: pytest.FixtureRequest) -> Iterator[CacheServer]:
    """Each kind of cache server."""
    with request.param() as server:
        yield server


def connect(server: CacheServer) -> socket.socket:
    return socket.create_connection((HOST, server.port), timeout=60)


def answers(client: socket.socket, server: CacheServer) -> bool:
    request, reply = PING[type(server)]
    client.sendall(request)
    return client.recv(100) == reply


def test_a_paused_server_keeps_connections_and_answers_after_resume(server: CacheServer) -> None:
    """A paused server is silent, and answers what it was asked meanwhile when it goes on."""
    with connect(server) as client:
        server.pause()
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            answers(client, server)
        server.resume()
        client.settimeout(60)
        assert client.recv(100) == PING[type(server)][1]


def test_a_killed_server_refuses_and_comes_back_on_its_port(server: CacheServer) -> None:
    """After a kill nobody listens; a start brings it back on the same port, under a new process."""
    address, pid = server.address, server.pid
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        connect(server)
    server.start()
    assert (server.address, server.pid) != (address, pid)
    assert server.address == address
    with connect(server) as client:
        assert answers(client, server)


def test_a_paused_server_can_be_killed_and_closed(server: CacheServer) -> None:
    """SIGSTOP protects neither from a kill nor from the end of the context."""
    server.pause()
    server.kill()
    assert not server.running
    server.start()
    server.pause()


def test_restart_and_stop_are_clean_and_repeatable(server: CacheServer) -> None:
    """A restart keeps the port; stopping twice is harmless."""
    port = server.port
    server.restart()
    assert server.port == port
    server.stop()
    server.stop()
    with pytest.raises(ServerError, match="does not run"):
        server.pause()


def test_a_closed_server_leaves_no_directory(server: CacheServer) -> None:
    """Closing removes the directory, and the same object can be started anew."""
    directory = server.directory
    server.close()
    assert not directory.exists()
    server.start()
    assert server.directory != directory


def test_a_port_taken_in_the_race_is_replaced(monkeypatch: pytest.MonkeyPatch, server: CacheServer) -> None:
    """When another process listens on the chosen port by the time of the bind, the next one is tried."""
    chosen = iter([server.port, server.port, lab_servers.free_port()])
    monkeypatch.setattr(lab_servers, "free_port", lambda: next(chosen))
    with type(server)() as second:
        assert second.port != server.port
        with connect(second) as client:
            assert answers(client, second)


def test_memcached_takes_extra_arguments() -> None:
    """The command line of memcached can be extended."""
    with MemcachedServer("-m", "8", "-I", "2m") as server:
        settings = server.ask("stats settings")
    assert "STAT maxbytes 8388608\r\n" in settings
    assert "STAT item_size_max 2097152\r\n" in settings


def test_redis_takes_extra_arguments_and_keeps_nothing() -> None:
    """The command line of Redis can be extended, and a restarted Redis is empty."""
    with RedisServer("--maxmemory", "8mb") as server, connect(server) as client:
        client.sendall(b"CONFIG GET maxmemory\r\n")
        assert b"8388608" in client.recv(100)
        client.sendall(b"SET k v\r\n")
        assert client.recv(100) == b"+OK\r\n"
        server.restart()
        with connect(server) as again:
            again.sendall(b"GET k\r\n")
            assert again.recv(100) == b"$-1\r\n"


def test_a_wrong_argument_is_reported_with_the_log() -> None:
    """A server that refuses its arguments gives an error with what it said."""
    with pytest.raises(ServerError, match=r"memcached did not start(.|\n)*--no-such-option"):
        MemcachedServer("--no-such-option").start()


def test_a_server_found_dead_can_be_started_again(server: CacheServer) -> None:
    """A server that died by other hands is noticed."""
    os.kill(server.pid, signal.SIGKILL)
    lab_servers.wait_until(lambda: not server.running, 60, "death")
    server.start()
    with connect(server) as client:
        assert answers(client, server)
