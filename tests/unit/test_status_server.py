"""The status server on real sockets: what it answers to whom, and that nobody keeps it from answering others."""

import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from leasecache.errors import ConfigError
from leasecache.invalidation import answers, server
from leasecache.invalidation.server import MOST, REQUEST_BYTES, StatusServer, parse_request
from leasecache.invalidation.status import Monitor
from leasecache.lab import wait_until

WITHIN = 60.0  # s


@pytest.fixture
def status() -> Iterator[StatusServer]:
    """A server of a monitor that has heard nothing."""
    made = StatusServer(("127.0.0.1", 0), Monitor(f"node-{i}" for i in range(300)))
    made.start()
    yield made
    made.close()


def connect(status: StatusServer) -> socket.socket:
    """Return a connection to a server."""
    host, _, port = status.address.rpartition(":")
    return socket.create_connection((host, int(port)), WITHIN)


def ask(status: StatusServer, request: bytes) -> bytes:
    """Send bytes and return everything that is answered until the server closes."""
    with connect(status) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def get(status: StatusServer, path: str = "/healthz", *, method: str = "GET") -> bytes:
    """Return the answer to a request."""
    return ask(status, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def fate(connection: socket.socket) -> bytes:
    """Return what comes until the other side ends the connection, in whatever way."""
    connection.settimeout(WITHIN)
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def test_it_answers_http(status: StatusServer) -> None:
    """A client of the standard library gets each page, and headers that keep browsers from making more of it."""
    for path in ("/", "/status.json", "/metrics", "/healthz"):
        with urllib.request.urlopen(f"http://{status.address}{path}?x=1", timeout=WITHIN) as reply:
            assert (reply.status, reply.headers["X-Content-Type-Options"]) == (200, "nosniff")
            assert len(reply.read()) == int(reply.headers["Content-Length"])
    assert get(status).endswith(b"\r\n\r\nok\n")
    assert get(status, "/nothing").startswith(b"HTTP/1.1 404 ")
    assert get(status, "/readyz").startswith(b"HTTP/1.1 503 ")


def test_head_has_no_body(status: StatusServer) -> None:
    """HEAD is answered as GET, without the body."""
    head = get(status, "/metrics", method="HEAD")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")


def test_bytes_may_come_one_by_one(status: StatusServer) -> None:
    """A request may be cut anywhere."""
    with connect(status) as connection:
        for byte in b"GET /healthz HTTP/1.0\n\n":
            connection.sendall(bytes([byte]))
        assert fate(connection).endswith(b"ok\n")


@pytest.mark.parametrize(
    ("request_", "status_line"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"get / HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nA\x00: \xff\r\n\r\n", b"200"),
        (b"GET /" + b"a" * REQUEST_BYTES + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 5_000_000 + b"\r\n\r\n", b"431"),
    ],
    ids=["post", "lower", "tls", "proxy", "odd", "line", "header"],
)
def test_bad_requests(status: StatusServer, request_: bytes, status_line: bytes) -> None:
    """What is no request, too long, or would change something is refused in a word; the next one is answered."""
    with connect(status) as connection:
        try:
            connection.sendall(request_)
        except (BrokenPipeError, ConnectionResetError):
            assert len(request_) > 1_000_000  # the refusal need not wait for all of it
        else:
            assert fate(connection).startswith(b"HTTP/1.1 " + status_line)
    assert get(status).endswith(b"ok\n")


def test_many_that_say_nothing(status: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred connections that send half a request cost neither threads nor the health check its answer.

    Guard: when all places are taken the oldest connection goes.
    """
    monkeypatch.setattr(server, "REQUEST_SECONDS", 2 * WITHIN)
    threads = threading.active_count()
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(status)) for _ in range(200)]
        for connection in slow:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            except (BrokenPipeError, ConnectionResetError):
                continue
        began = time.monotonic()
        assert get(status).endswith(b"ok\n")
        assert time.monotonic() - began < server.REQUEST_SECONDS / 2
        assert len(status._open) <= MOST
        assert threading.active_count() <= threads  # some of other tests may end meanwhile
        assert fate(slow[0]) == b""


def test_who_takes_too_long_is_dropped(status: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is not complete in time ends, also if a byte comes now and then. Guard: its one deadline."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)
    with connect(status) as connection:
        began = time.monotonic()
        try:
            while time.monotonic() - began < WITHIN:
                connection.sendall(b"G")
                connection.settimeout(0.05)
                try:
                    if not connection.recv(1):
                        break
                except TimeoutError:
                    continue
        except ConnectionError:
            pass
        assert time.monotonic() - began < WITHIN / 2


def test_who_does_not_read_is_dropped(status: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read its answer keeps nobody waiting, and goes in the end."""
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(answers, "generate_latest", lambda _: b"x" * 50_000_000)
    with connect(status) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert get(status).endswith(b"ok\n")
        wait_until(lambda: not status._open, WITHIN, "the connection to be dropped")


def test_a_page_that_fails_is_counted(
    status: StatusServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a page is a 500 and a line of the log, and the other pages go on."""
    monkeypatch.setattr(server, "answer", lambda *_: 1 / 0)
    assert get(status).startswith(b"HTTP/1.1 500 ")
    monkeypatch.undo()
    assert get(status).endswith(b"ok\n")
    assert status._monitor.figures.registry.get_sample_value("leasecache_daemon_unexpected_errors_total") == 1
    assert caplog.messages == ["unexpected"]


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True), ("::1", False), ("::", True)])
def test_who_listens_to_everybody_is_warned(host: str, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Bound to anything but loopback, the log says in one line that anybody may read."""
    try:
        made = StatusServer((host, 0), Monitor())
    except ConfigError:
        assert ":" in host  # a machine without IPv6
        return
    made.start()
    made.close()
    assert caplog.messages == ["status-exposed"] * warns
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_closing_ends_it() -> None:
    """A closed server has no thread, and its port can be taken at once."""
    made = StatusServer(("127.0.0.1", 0), Monitor())
    made.start()
    assert get(made).endswith(b"ok\n")
    made.close()
    assert "leasecache-status" not in {thread.name for thread in threading.enumerate()}
    host, _, port = made.address.rpartition(":")
    StatusServer((host, int(port)), Monitor()).close()


def test_requests_are_read_strictly() -> None:
    """A request is its method, its path without the query, and what it accepts."""
    assert parse_request(b"GET /a?b HTTP/1.1\r\nHost: x\r\naCCept:  text/html\r\nX: y") == ("GET", "/a", "text/html")
    assert parse_request(b"GET / HTTP/1.1") == ("GET", "/", "")
    for wrong in (b"", b"GET", b"GET / HTTP/2.0", b"GET  / HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET a HTTP/1.1"):
        assert parse_request(wrong) is None
