"""Both wires against a peer on loopback that says what it should not, too little, too much, too slowly, or nothing."""

import contextlib
import functools
import os
import signal
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leasecache import _pure
from leasecache.errors import NodeError, NodeTimeout, ProtocolError
from tests.twins import TWINS

LONG = 60.0  # s; nothing that works takes this long, and what a peer does in vain takes longer
SHORT = 0.2  # s, where a time limit is under test
SLACK = 15.0  # s that a busy machine may be late; without the limit these exchanges do not end before LONG

Script = Callable[[socket.socket], None]
MakeWire = Callable[..., Any]


def _makers() -> dict[str, MakeWire]:
    makers: dict[str, MakeWire] = {"pure": _pure.Wire}
    for compiled in TWINS[1:]:
        makers["pure-compiled-parser"] = functools.partial(_pure.Wire, parse=compiled.parse_reply)
        makers["compiled"] = compiled.Wire
    return makers


@pytest.fixture(params=_makers().values(), ids=_makers().keys())
def make(request: pytest.FixtureRequest) -> MakeWire:
    """Each way to make a wire of a connected socket."""
    maker: MakeWire = request.param
    return maker


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, ours and the peer's."""
    ours, theirs = connected(request.param)
    with ours, theirs:
        yield ours, theirs


def connected(family: str) -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets."""
    if family == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


@contextlib.contextmanager
def playing(script: Script, theirs: socket.socket) -> Iterator[None]:
    """Let the peer play its script in a thread, until it ends or the sockets close."""

    def play() -> None:
        with contextlib.suppress(OSError):  # our side hung up
            script(theirs)

    peer = threading.Thread(target=play)
    peer.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)
        peer.join(LONG)
        assert not peer.is_alive()


def says(*chunks: bytes, close: bool = False) -> Script:
    """The peer reads one request, sends the chunks one by one and then hangs up, or waits."""

    def script(sock: socket.socket) -> None:
        sock.recv(65536)
        for chunk in chunks:
            sock.sendall(chunk)
        if close:
            sock.shutdown(socket.SHUT_RDWR)

    return script


def facts(reply: Any) -> tuple[Any, ...]:
    """Return what distinguishes replies in these tests."""
    return (reply.code, reply.value, reply.cas)


BATCH = b"VA 5 c7\r\n\r\nHD!\r\nEN\r\nHD c9 W\r\nSERVER_ERROR out of memory\r\n"
BATCH_FACTS = [(b"VA", b"\r\nHD!", 7), (b"EN", None, 0), (b"HD", None, 9), (b"SERVER_ERROR", b"out of memory", 0)]
QUIET = b"NF\r\nNF c3\r\nMN\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks(make: MakeWire, pair: Any, size: int) -> None:
    """Replies are the same whether they come whole, byte by byte or in pieces; the wire can be used again."""
    chunks = [BATCH[i : i + size] for i in range(0, len(BATCH), size)]
    quiet = [QUIET[i : i + size] for i in range(0, len(QUIET), size)]

    def script(sock: socket.socket) -> None:
        says(*chunks)(sock)
        says(*quiet)(sock)

    ours, theirs = pair
    with playing(script, theirs):
        wire = make(ours, LONG)
        assert [facts(reply) for reply in wire.exchange(b"mg\r\n", 4)] == BATCH_FACTS
        assert [reply.cas for reply in wire.exchange_quiet(b"md a q\r\nmd b q\r\nmn\r\n")] == [0, 3]


def test_truncated(make: MakeWire) -> None:
    """A connection that ends within a reply, wherever it is cut, is a NodeError, not a reply and not a wait."""
    for cut in range(len(BATCH)):
        ours, theirs = connected("unix")
        with ours, theirs:
            theirs.sendall(BATCH[:cut])
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(NodeError, match=r"^connection closed by the server$") as caught:
                make(ours, LONG).exchange(b"mg\r\n", 4)
            assert not isinstance(caught.value, (NodeTimeout, ProtocolError))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BATCH + b"HD\r\n", "bytes after the last expected reply"),
        (BATCH + b"x", "bytes after the last expected reply"),
        (b"\0" * 10_000, "longer than the protocol allows"),
        (b"HTTP/1.1 400 Bad Request\r\n", "unexpected reply b'HTTP/1.1 400"),
        (b"VA 3 c1\r\nabcd\r\n", "not followed by CRLF"),
        (b"VA 99999999999999\r\n", "expected a number below"),
        (b"HD W\r\nHD c-1\r\n", "expected a number below"),
    ],
)
def test_garbage(make: MakeWire, pair: Any, data: bytes, message: str) -> None:
    """What is no reply, or comes after the last one, is a ProtocolError at once."""
    ours, theirs = pair
    theirs.sendall(data)
    with pytest.raises(ProtocolError, match=message):
        make(ours, LONG).exchange(b"mg\r\n", 4)


PLAIN = 4026531841
HITS = (
    b"VA 5 c7 f4026531841 t60\r\nplain\r\n"
    b"VA 0 c8 f4026531841 t-1\r\n\r\n"
    b"VA 5 f4026531841 c9\r\nother\r\n"  # in another order, and without t: still a plain hit
    b"VA 5 c10 f1 t60\r\nflags\r\n"
    b"VA 5 c11 f4026531841 t60 Z\r\ntaken\r\n"
    b"VA 5 c12 f4026531841 t60 W\r\nearly\r\n"
    b"VA 5 c13 f4026531841 t60 X\r\nstale\r\n"
    b"EN\r\n"
    b"VA 3 c14 f4026531841 t60\r\nend\r\n"
)
HITS_FACTS = [b"plain", b"", b"other", 10, 11, 12, 13, 0, b"end"]


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_hits(make: MakeWire, pair: Any, size: int) -> None:
    """Of lease-gets, plain hits with the flags asked for are values alone, all else is replies, in whatever pieces."""
    chunks = [HITS[i : i + size] for i in range(0, len(HITS), size)]
    ours, theirs = pair
    with playing(says(*chunks), theirs):
        found = make(ours, LONG).hits(b"mg\r\n", len(HITS_FACTS), PLAIN)
    assert [one if isinstance(one, bytes) else one.cas for one in found] == HITS_FACTS


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_hit(make: MakeWire, pair: Any, size: int) -> None:
    """One lease-get gives the value of a plain hit, whole or in pieces; the wire can be used again."""
    replies = [b"VA 300 c7 f4026531841 t60\r\n" + b"v" * 300 + b"\r\n", b"VA 1 c8 f4026531841 t60 Z\r\nx\r\n"]
    scripts = [says(*[reply[i : i + size] for i in range(0, len(reply), size)]) for reply in replies]

    def script(sock: socket.socket) -> None:
        for one in scripts:
            one(sock)

    ours, theirs = pair
    with playing(script, theirs):
        wire = make(ours, LONG)
        assert wire.hit(b"mg\r\n", PLAIN) == b"v" * 300
        assert wire.hit(b"mg\r\n", PLAIN).cas == 8


def test_trailing_after_hit(make: MakeWire, pair: Any) -> None:
    """Bytes after the one reply are a ProtocolError, though it is a plain hit: they would answer the next caller."""
    ours, theirs = pair
    theirs.sendall(b"VA 1 c7 f4026531841 t60\r\nx\r\nEN\r\n")
    with pytest.raises(ProtocolError, match="bytes after the last expected reply"):
        make(ours, LONG).hit(b"mg\r\n", PLAIN)


def test_trailing_after_quiet(make: MakeWire, pair: Any) -> None:
    """Bytes after the MN of a quiet batch are a ProtocolError: they would be taken for the next answer."""
    ours, theirs = pair
    theirs.sendall(QUIET + b"HD\r\n")
    with pytest.raises(ProtocolError, match="bytes after the last expected reply"):
        make(ours, LONG).exchange_quiet(b"md a q\r\nmd b q\r\nmn\r\n")


def test_more_replies_than_quiet_commands(make: MakeWire, pair: Any) -> None:
    """What is answered for ever ends with the first reply that no command can have; guard: the count of commands."""
    ours, theirs = pair
    with playing(endless(b"NF\r\n" * 64), theirs), pytest.raises(ProtocolError, match="more replies than commands"):
        make(ours, LONG).exchange_quiet(b"md a q\r\nmd b q\r\nmn\r\n")


def endless(chunk: bytes) -> Script:
    """The peer sends the same bytes for ever, as fast as they are taken."""

    def script(sock: socket.socket) -> None:
        while True:
            sock.sendall(chunk)

    return script


def test_endless_line(make: MakeWire, pair: Any) -> None:
    """A line that never ends is a ProtocolError as soon as it is too long."""
    ours, theirs = pair
    with playing(endless(b"x" * 4096), theirs), pytest.raises(ProtocolError, match="longer than the protocol allows"):
        make(ours, LONG).exchange(b"mg\r\n", 1)


def limited(call: Callable[[], object]) -> None:
    """Assert that `call` ends in NodeTimeout when SHORT is over, not sooner and not much later."""
    began = time.monotonic()
    with pytest.raises(NodeTimeout, match=r"^no answer within 0\.2 s$"):
        call()
    assert SHORT * 0.95 <= time.monotonic() - began < SHORT + SLACK


def test_silence(make: MakeWire, pair: Any) -> None:
    """A peer that does not answer is a NodeTimeout in time."""
    ours, _ = pair
    wire = make(ours, SHORT)
    limited(lambda: wire.exchange(b"mg\r\n", 1))


def test_drip(make: MakeWire, pair: Any) -> None:
    """The limit holds for the whole exchange: bytes that each come in time do not prolong it."""
    over = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(b"VA 1000\r\n")
        while not over.wait(SHORT / 10):
            sock.sendall(b"x")

    ours, theirs = pair
    wire = make(ours, SHORT)
    with playing(script, theirs):
        limited(lambda: wire.exchange(b"mg\r\n", 1))
        over.set()


def test_late_byte(make: MakeWire) -> None:
    """A byte shortly before the limit does not begin a new one, however often it comes."""
    over = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(b"VA 1000\r\n")
        while not over.wait(0.9):
            sock.sendall(b"x")

    ours, theirs = connected("unix")
    with ours, theirs, playing(script, theirs):
        wire = make(ours, 1.0)
        began = time.monotonic()
        with pytest.raises(NodeTimeout):
            wire.exchange(b"mg\r\n", 1)
        took = time.monotonic() - began
        over.set()
    assert 0.95 < took < SLACK


def test_flood(make: MakeWire, pair: Any) -> None:
    """The limit holds against a peer that never pauses, whose bytes are there whenever we look."""
    ours, theirs = pair
    wire = make(ours, SHORT)
    with playing(endless(b"NF\r\n" * 64), theirs):
        limited(lambda: wire.exchange(b"mg\r\n", 10**9))


def test_peer_that_does_not_read(make: MakeWire, pair: Any) -> None:
    """A request larger than the socket buffers is given up in time when nobody reads it."""
    ours, _ = pair
    wire = make(ours, SHORT)
    limited(lambda: wire.exchange(b"x" * 2**26, 1))


def test_peer_that_reads_slowly(make: MakeWire, pair: Any) -> None:
    """The limit includes sending: a peer that takes a little now and then does not prolong it."""
    over = threading.Event()

    def script(sock: socket.socket) -> None:
        while not over.wait(SHORT / 2):  # so that it takes more than LONG for all
            sock.recv(65536)

    ours, theirs = pair
    wire = make(ours, SHORT)
    with playing(script, theirs):
        limited(lambda: wire.exchange(b"x" * 2**26, 1))
        over.set()


def test_large_request(make: MakeWire, pair: Any) -> None:
    """A request larger than the socket buffers arrives whole at a peer that reads."""
    request = os.urandom(2**16) * 64
    received = bytearray()

    def script(sock: socket.socket) -> None:
        while len(received) < len(request):
            received.extend(sock.recv(2**20))
        sock.sendall(b"HD\r\n")

    ours, theirs = pair
    with playing(script, theirs):
        make(ours, LONG).exchange(request, 1)
    assert received == request


@pytest.mark.parametrize("size", [0, 1, 16_000, 2**20, 2**23])
def test_large_values(make: MakeWire, pair: Any, size: int) -> None:
    """Values of any size come through unchanged, and a small reply after them."""
    value = (os.urandom(997) * (size // 997 + 1))[:size]
    ours, theirs = pair
    script = says(b"VA %d c5\r\n" % size, value, b"\r\nEN\r\n")
    with playing(script, theirs):
        replies = make(ours, LONG).exchange(b"mg\r\n", 2)
    assert [facts(reply) for reply in replies] == [(b"VA", value, 5), (b"EN", None, 0)]


def test_large_batch(make: MakeWire, pair: Any) -> None:
    """A batch of many replies comes through in order."""
    batch = b"".join(b"VA 3 O%d\r\nabc\r\n" % i for i in range(20_000))
    ours, theirs = pair
    with playing(says(batch), theirs):
        replies = make(ours, LONG).exchange(b"mg\r\n", 20_000)
    assert [reply.opaque for reply in replies] == list(range(20_000))


def test_no_replies(make: MakeWire, pair: Any) -> None:
    """A request that gets no reply is sent without waiting for one."""
    ours, theirs = pair
    assert make(ours, LONG).exchange(b"request", 0) == []
    assert theirs.recv(100) == b"request"


def test_reset(make: MakeWire) -> None:
    """A peer that resets the connection is a NodeError that says so, when receiving and when sending."""
    ours, theirs = connected("tcp")
    with ours:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        wire = make(ours, LONG)
        with pytest.raises(NodeError, match=r"^connection broke: .*reset by peer") as caught:
            wire.exchange(b"mg\r\n", 1)
        assert not isinstance(caught.value, (NodeTimeout, ProtocolError))
        with pytest.raises(NodeError, match=r"^connection (broke|closed)"):
            wire.exchange(b"mg\r\n", 1)


def test_hung_up(make: MakeWire, pair: Any) -> None:
    """Sending to a peer that has hung up is a NodeError, the first time and later."""
    ours, theirs = pair
    theirs.close()
    wire = make(ours, LONG)
    for _ in range(2):
        with pytest.raises(NodeError, match=r"^connection (broke|closed)"):
            wire.exchange(b"mg\r\n", 1)


def test_closed_wire(make: MakeWire, pair: Any) -> None:
    """A closed wire is a NodeError, and closing it again does nothing."""
    ours, _ = pair
    wire = make(ours, LONG)
    wire.close()
    wire.close()
    with pytest.raises(NodeError):
        wire.exchange(b"mg\r\n", 1)


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle SIGUSR1 for a while."""
    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


def interrupting(handled: threading.Event, answer: bytes = b"") -> Script:
    """The peer reads the request, sends signals to the main thread until one was handled, and answers."""

    def script(sock: socket.socket) -> None:
        sock.recv(100)
        while not handled.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        sock.sendall(answer)

    return script


def test_signal(make: MakeWire, pair: Any) -> None:
    """A signal whose handler returns does not disturb an exchange that waits."""
    handled = threading.Event()
    ours, theirs = pair
    wire = make(ours, LONG)
    with handling(lambda *_: handled.set()), playing(interrupting(handled, b"HD c4\r\n"), theirs):
        assert wire.exchange(b"mg\r\n", 1)[0].cas == 4
    assert handled.is_set()


def test_signal_that_raises(make: MakeWire, pair: Any) -> None:
    """An exception from a signal handler, such as KeyboardInterrupt, ends the wait and reaches the caller."""
    handled = threading.Event()

    def handler(*_: object) -> None:
        handled.set()
        raise KeyboardInterrupt

    ours, theirs = pair
    wire = make(ours, LONG)
    with handling(handler), playing(interrupting(handled), theirs), pytest.raises(KeyboardInterrupt):
        wire.exchange(b"mg\r\n", 1)


def test_signals_do_not_prolong(make: MakeWire, pair: Any) -> None:
    """However many signals interrupt a wait, it ends in time."""
    over = threading.Event()
    ours, theirs = pair
    wire = make(ours, SHORT)
    with handling(lambda *_: None), playing(interrupting(over), theirs):
        limited(lambda: wire.exchange(b"mg\r\n", 1))
        over.set()


def test_fork(make: MakeWire, pair: Any) -> None:
    """A forked child that closes its copy of a wire leaves the parent's connection as it was."""
    ours, theirs = pair
    wire = make(ours, LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests' servers may have left threads
        child = os.fork()
    if child == 0:
        wire.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with playing(says(b"HD c1\r\n"), theirs):
        assert wire.exchange(b"mg\r\n", 1)[0].cas == 1


def test_limit_of_many_years(make: MakeWire, pair: Any) -> None:
    """A time limit beyond what the system's calls can express is no limit, not an overflow."""
    ours, theirs = pair
    wire = make(ours, 1e7)
    with playing(says(b"HD", b"\r\n"), theirs):
        assert wire.exchange(b"mg\r\n", 1)[0].code == b"HD"
