"""The status server: a few pages over HTTP, from one thread and in bounded memory, whoever connects.

Connections take turns without any of them waiting for another: a slow one costs its place among MOST, and when all
places are taken the oldest goes, so a health check is answered even while others keep theirs open and say nothing.
"""

import errno
import ipaddress
import logging
import os
import re
import selectors
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

from leasecache.errors import ConfigError
from leasecache.invalidation.answers import TEXT, Page, answer
from leasecache.invalidation.logs import event
from leasecache.invalidation.status import Monitor

MOST = 64  # connections at a time
REQUEST_BYTES = 8192
REQUEST_SECONDS = 5.0  # for a whole request
ANSWER_SECONDS = 10.0  # for reading a whole answer
LINGER_SECONDS = 1.0  # for the other side to close: closing first could cost it the answer
_CHUNK = 65536
_END = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"([A-Z]{1,20}) (/[!-~]*) HTTP/1\.[01]")
_ACCEPT = re.compile(rb"\naccept:[ \t]*([^\r\n]*)", re.IGNORECASE)


class Request(NamedTuple):
    """What is asked for."""

    method: str
    path: str  # without the query
    accept: str


def parse_request(head: bytes) -> Request | None:
    """Read a request's first line and what matters of its headers; None when it is no HTTP request."""
    line = _LINE.fullmatch(head.partition(b"\n")[0].rstrip(b"\r"))
    if line is None:
        return None
    accept = _ACCEPT.search(head)
    path = line[2].decode().partition("?")[0]
    return Request(line[1].decode(), path, accept[1].decode("latin-1") if accept else "")


class StatusServer:
    """Serve the state of a monitor from a thread that ends with the process."""

    def __init__(self, address: tuple[str, int], monitor: Monitor) -> None:
        """Bind `address`; port 0 takes any. Raises ConfigError when it cannot be bound."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._listener = socket.create_server(address, family=family, backlog=4 * MOST)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"status.listen: cannot listen on {address[0]}:{address[1]}: {error}") from None
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._exposed = not ipaddress.ip_address(host.partition("%")[0]).is_loopback
        self._listener.setblocking(False)
        self._monitor = monitor
        self._ear, self._bell = os.pipe()
        self._turns = selectors.DefaultSelector()
        self._turns.register(self._listener, selectors.EVENT_READ)
        self._turns.register(self._ear, selectors.EVENT_READ)
        self._open: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to answer."""
        if self._exposed:
            fix = "anybody who reaches it may read it: listen on 127.0.0.1, or let a proxy ask for a password"
            event(logging.WARNING, "status-exposed", address=self.address, fix=fix)
        self._thread = threading.Thread(target=self._run, name="leasecache-status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        os.write(self._bell, b"!")
        if self._thread is not None:
            self._thread.join()
        for connection in list(self._open.values()):
            self._drop(connection)
        self._turns.close()
        self._listener.close()
        os.close(self._ear)
        os.close(self._bell)

    def _run(self) -> None:
        while True:
            ready = [(key.fd, key.data) for key, _ in self._turns.select(self._patience())]
            if any(descriptor == self._ear for descriptor, _ in ready):
                return
            for _, connection in ready:
                if connection is not None:
                    self._turn(connection)
            if any(connection is None for _, connection in ready):
                self._accept()
            now = time.monotonic()
            for connection in [each for each in self._open.values() if each.deadline <= now]:
                self._drop(connection)

    def _patience(self) -> float | None:
        if not self._open:
            return None
        return max(0.0, min(each.deadline for each in self._open.values()) - time.monotonic())

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._open:  # else we would be woken again at once
                self._drop_oldest()
            return
        if len(self._open) >= MOST:
            self._drop_oldest()
        accepted.setblocking(False)
        connection = _Connection(accepted, time.monotonic() + REQUEST_SECONDS)
        self._open[accepted.fileno()] = connection
        self._turns.register(accepted, selectors.EVENT_READ, connection)

    def _turn(self, connection: "_Connection") -> None:
        if connection.socket.fileno() not in self._open:
            return  # dropped in this turn
        try:
            going_on = self._send(connection) if connection.answering else self._read(connection)
        except BlockingIOError:
            return
        except OSError:
            going_on = False
        if not going_on:
            self._drop(connection)

    def _read(self, connection: "_Connection") -> bool:
        data = connection.socket.recv(_CHUNK)
        if connection.answered or not data:
            return bool(data)  # what comes after the request is read and forgotten
        connection.request += data
        end = _END.search(connection.request)
        if end is not None and end.end() <= REQUEST_BYTES:
            connection.answer = self._respond(connection.request[: end.start()])
        elif len(connection.request) > REQUEST_BYTES:
            connection.answer = _response(Page(431, TEXT, b"the request is too long\n"))
        else:
            return True
        connection.request = b""
        connection.deadline = time.monotonic() + ANSWER_SECONDS
        self._turns.modify(connection.socket, selectors.EVENT_WRITE, connection)
        return True

    def _send(self, connection: "_Connection") -> bool:
        sent = connection.socket.send(connection.answer[:_CHUNK])
        connection.answer = connection.answer[sent:]
        if not connection.answer:
            connection.answered = True
            connection.deadline = time.monotonic() + LINGER_SECONDS
            connection.socket.shutdown(socket.SHUT_WR)
            self._turns.modify(connection.socket, selectors.EVENT_READ, connection)
        return True

    def _respond(self, head: bytes) -> memoryview:
        request = parse_request(head)
        if request is None:
            return _response(Page(400, TEXT, b"this is not an HTTP request\n"))
        if request.method not in ("GET", "HEAD"):
            return _response(Page(405, TEXT, b"GET and HEAD only\n", (("Allow", "GET, HEAD"),)))
        try:
            page = answer(request.path, self._monitor, request.accept)
        except Exception as error:  # the top loop of this thread: a page that fails must not take the others along
            self._monitor.crashed(error)
            page = Page(500, TEXT, b"the page could not be made; the daemon's log says why\n")
        return _response(page, body=request.method == "GET")

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._open.values())))

    def _drop(self, connection: "_Connection") -> None:
        del self._open[connection.socket.fileno()]
        with suppress(OSError):
            self._turns.unregister(connection.socket)
        connection.socket.close()


class _Connection:
    """One connection and what is still to be read or sent."""

    def __init__(self, accepted: socket.socket, deadline: float) -> None:
        self.socket = accepted
        self.deadline = deadline  # monotonic s
        self.request = b""
        self.answer = memoryview(b"")
        self.answered = False

    @property
    def answering(self) -> bool:
        """Whether an answer is to be sent."""
        return bool(self.answer)


def _response(page: Page, *, body: bool = True) -> memoryview:
    fields = (
        ("Content-Type", page.content_type),
        ("Content-Length", str(len(page.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Connection", "close"),
        *page.headers,
    )
    lines = [
        f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return memoryview("\r\n".join([*lines, "", ""]).encode() + (page.body if body else b""))
