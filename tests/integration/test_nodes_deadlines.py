"""Whatever is asked of a node ends in its time, though the node sends a byte now and then."""

import contextlib
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from leasecache import ConfigError, Lease, NodeTimeout
from leasecache.lab import MemcachedServer
from leasecache.stores import dial
from leasecache.stores.dial import Tls
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.pool import Connection

PAUSE = 0.05  # s before each byte
LIMITED = {"timeout": 0.3, "connect_timeout": 0.3}  # s
BOUND = 30.0  # s: what an answer takes that is waited for to its end is more


class _Dripping(socketserver.StreamRequestHandler):
    """Answers the commands in `server.prompt` at once, and everything else a byte at a time."""

    server: Any

    def handle(self) -> None:
        for line in self.rfile:
            for command, answer in self.server.prompt.items():
                if line.startswith(command):
                    self.wfile.write(answer)
                    break
            else:
                self.drip()

    def drip(self) -> None:
        for _ in range(2000):
            if self.server.over.wait(PAUSE):
                return
            self.wfile.write(b"V")


@contextmanager
def dripping(*prompt: bytes) -> Iterator[MemcachedNode]:
    """A node of a server that drips; of the greeting it answers what is in `prompt` at once."""
    answers = {b"version": b"VERSION 1.6.45\r\n", b"stats settings": b"STAT cas_enabled yes\r\nEND\r\n"}
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Dripping) as server:
        server.daemon_threads = True
        server.over = threading.Event()  # type: ignore[attr-defined]
        server.prompt = {command: answers[command] for command in prompt}  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield MemcachedNode(f"127.0.0.1:{server.server_address[1]}", **LIMITED)
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


ASKED: dict[str, Callable[[MemcachedNode], object]] = {
    "lease_get": lambda node: node.lease_get(b"item", 10),
    "invalidate": lambda node: node.invalidate([b"item"]),
    "soft invalidate": lambda node: node.invalidate([b"item"], 30),
    "look": lambda node: node.look(b"item"),
    "stats": lambda node: node.stats(),
}


@pytest.mark.parametrize("prompt", [(), (b"version",), (b"version", b"stats settings")], ids=["none", "version", "all"])
@pytest.mark.parametrize("asked", ASKED)
def test_one_deadline_for_each_exchange(asked: str, prompt: tuple[bytes, ...]) -> None:
    """A server that drips its version, its settings or its answers holds nobody longer than the time limits say.

    Guard: what is left of one deadline is the time limit of each read.
    """
    with dripping(*prompt) as node:
        began = time.monotonic()
        with pytest.raises(NodeTimeout):
            ASKED[asked](node)
        assert time.monotonic() - began < BOUND


def test_connecting_has_one_deadline_for_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with many addresses that do not answer takes no longer than one of them."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, ExitStack() as stack:
        for _ in range(4):  # fill the queue: whoever else connects is not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        silent = (socket.AF_INET, listening.getsockname())
        monkeypatch.setattr(dial, "_resolve", lambda address: [silent] * 100)
        began = time.monotonic()
        with pytest.raises(NodeTimeout):
            MemcachedNode("many.example:1", **LIMITED).lease_get(b"item", 10)
        assert time.monotonic() - began < BOUND


def test_name_with_addresses_of_which_one_answers(memcached: MemcachedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next address is tried when nobody listens at the first: localhost may be ::1, too."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        addresses = [(socket.AF_INET, closed.getsockname()), (socket.AF_INET, ("127.0.0.1", memcached.port))]
        monkeypatch.setattr(dial, "_resolve", lambda address: addresses)
        node = MemcachedNode("two.example:1")
        assert isinstance(node.lease_get(b"item", 10), Lease)
        node.close()


def test_herd_of_connections_asks_for_the_settings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections that are opened at once cost a round trip each, and one of them asks for the settings, too.

    Guard: SETTINGS_FOR.
    """
    monkeypatch.setattr(dial, "SETTINGS_FOR", 600.0)  # s: longer than the slowest machine takes for them all
    with MemcachedServer("-vv") as server:
        node = MemcachedNode(server.address)
        barrier = threading.Barrier(32)

        def connect() -> None:
            barrier.wait()
            opened.append(node._pool.acquire())

        opened: list[Connection[Any]] = []

        threads = [threading.Thread(target=connect) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for connection in opened:
            node._pool.release(connection)
        node.close()
        log = server.log()
        assert log.count("version") == 32
        assert log.count("stats settings") == 1


def test_settings_are_read_anew_after_a_restart(memcached: MemcachedServer) -> None:
    """A server that comes back without CAS numbers is found out at once; guard: `Dialer.distrust`."""
    node = MemcachedNode(memcached.address)
    assert isinstance(node.lease_get(b"item", 10), Lease)
    memcached.stop()
    memcached._arguments = ("-C",)
    memcached.start()
    with pytest.raises(ConfigError, match="runs with -C"):
        node.lease_get(b"item", 10)


def read_slowly(listening: socket.socket, context: ssl.SSLContext, over: threading.Event) -> None:
    """Greet over TLS, promise a lease, and then take 16 KiB now and then."""
    with listening.accept()[0] as accepted, context.wrap_socket(accepted, server_side=True) as client:
        for answer in (b"VERSION 1.6.45\r\nSTAT item_size_max 99999999\r\nEND\r\n", b"VA 0 c9 f0 t10 W\r\n\r\n"):
            client.recv(4096)
            client.sendall(answer)
        with contextlib.suppress(OSError):
            while not over.wait(PAUSE) and client.recv(16384):
                pass


def test_tls_server_that_reads_slowly(tmp_path: Path) -> None:
    """A large value of which the server takes a record now and then is given up in time."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=read_slowly, args=(listening, context, over))
        server.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        node = MemcachedNode(address, timeout=3, connect_timeout=30, tls=Tls(ca=str(tmp_path / "ca.pem")))
        lease = node.lease_get(b"item", 10)
        assert isinstance(lease, Lease)
        began = time.monotonic()
        with pytest.raises(NodeTimeout):
            node.lease_set(lease, 1, b"x" * 50_000_000, 60)
        assert time.monotonic() - began < BOUND
        over.set()
        server.join()
