"""Errands before a socket that is the test's: replies in any pieces, and whatever a server may do instead."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from leasecache._accel import Reply
from leasecache.errors import NodeError, NodeTimeout, ProtocolError
from leasecache.stores import meta
from leasecache.stores.errand import MOST, Errand

GUARD = b"!guard:shop:"
REQUEST = meta.then_record(meta.delete_quietly([b"a", b"b"]), GUARD)
RECORD = b"VA 6\r\nrecord\r\n"
NOW = 100.0


class Line:
    """An errand, its server's end of the connection, and what its settling was told."""

    def __init__(self, request: bytes = REQUEST) -> None:
        mine, self.server = socket.socketpair()
        self.settled: list[NodeError | None] = []
        self.again = False
        self.errand = Errand(SimpleNamespace(sock=mine), request, _read, self._settle, NOW + 1)  # type: ignore[arg-type]

    def _settle(self, error: NodeError | None) -> None:
        self.settled.append(error)
        if error is not None and not self.again:
            raise NodeError(f"node: {error}")

    def answer(self, data: bytes, now: float = NOW) -> None:
        """Let the server send, and the errand go on."""
        self.server.sendall(data)
        self.errand.attend(now)


def _read(replies: list[Reply]) -> bytes | None:  # type: ignore[misc]  # any sequence
    deleted, record = meta.split_record(replies, GUARD)
    meta.read_acknowledgement(deleted, 0, 0, None)
    return record


@pytest.fixture
def line() -> Iterator[Line]:
    """An errand that has been sent."""
    made = Line()
    yield made
    made.errand.close()
    made.server.close()


@pytest.mark.parametrize("misses", range(3))
@pytest.mark.parametrize("record", [RECORD, b"VA 4\r\nMN\r\n\r\n", b"EN\r\n"])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_replies_in_pieces(line: Line, misses: int, record: bytes, size: int) -> None:
    """It is over with its last byte, however these come, and its connection is given back once."""
    assert line.server.recv(1000) == REQUEST
    answer = b"NF\r\n" * misses + record + b"MN\r\n"
    for at in range(0, len(answer), size):
        assert not line.errand.done()
        line.answer(answer[at : at + size])
    assert line.errand.done()
    assert line.errand.exception() is None
    assert line.errand.result() == {RECORD: b"record", b"EN\r\n": None}.get(record, b"MN\r\n")
    assert line.settled == [None]
    line.errand.attend(NOW + 10)
    assert line.settled == [None]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"NF\r\n" * 4 + b"MN\r\n", ProtocolError),  # as many as commands, before the record
        (b"NF\r\n" + RECORD * 3 + b"MN\r\n", ProtocolError),
        (RECORD + b"MN\r\nMN\r\n", ProtocolError),
        (b"SERVER_ERROR out of memory\r\n" + RECORD + b"MN\r\n", meta.Complaint),
        (b"ERROR\r\nMN\r\n", ProtocolError),
        (b"MN\r\n", ProtocolError),
    ],
)
def test_other_replies(line: Line, answer: bytes, error: type[NodeError]) -> None:
    """What deletions and a record cannot be answered is the node's error, as it is for who waits."""
    line.answer(answer)
    assert line.errand.done()
    assert isinstance(line.errand.exception(), NodeError)
    assert [type(found) for found in line.settled] == [error]


def test_a_reply_without_end(line: Line) -> None:
    """A server that goes on and on is not listened to for ever."""
    sent = 0
    while not line.errand.done():
        assert sent <= 2 * MOST
        line.answer(b"NF\r\n" * 4096)
        sent += 4 * 4096
    assert isinstance(line.settled[0], ProtocolError)


def test_a_connection_that_had_died(line: Line) -> None:
    """Where another connection may do better the errand is lost, which is no error."""
    line.again = True
    line.server.close()
    line.errand.attend(NOW)
    assert line.errand.done()
    assert line.errand.lost
    assert line.errand.exception() is None


@pytest.mark.parametrize("answered", [b"", b"NF\r\n"])
def test_no_answer_in_time(line: Line, answered: bytes) -> None:
    """Whoever asks again in time finds it under way; at its time it is over."""
    line.server.sendall(answered)
    line.errand.attend(NOW + 0.9)
    line.errand.attend(NOW + 0.99)
    assert not line.errand.done()
    line.errand.attend(NOW + 1)
    assert isinstance(line.settled[0], NodeTimeout)
    assert not line.errand.lost


def test_a_request_that_the_socket_does_not_take_at_once() -> None:
    """The rest is sent when there is room; until then that is what has to be waited for."""
    line = Line(meta.then_record(meta.delete_quietly([b"%0200d" % i for i in range(50_000)]), GUARD))
    waited, received = line.errand.events, 0
    while line.errand.events == waited:
        received += len(line.server.recv(1 << 20))
        line.errand.attend(NOW)
    line.answer(b"NF\r\n" + RECORD + b"MN\r\n")
    assert line.errand.result() == b"record"
    line.errand.close()
    line.server.close()
