"""The short way of a plain hit: it makes every check that the long way makes, and leaves all else to that."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leasecache import _accel
from leasecache.errors import GuardError, ProtocolError
from leasecache.metrics import NodeStats
from leasecache.stores import pool
from leasecache.stores.pool import Connection, Pool
from leasecache.stores.probe import Probe
from leasecache.stores.ring import ring
from tests.twins import USABLE

FLAGS = 4026531841
TAIL = b" N10 c f t v"
PLAIN = b"VA 5 c7 f4026531841 t60\r\nplain\r\n"
WON = b"VA 0 c8 f0 t10 W\r\n\r\n"


class Peer:
    """A server whose connections are pairs of sockets; what it will say is written to them beforehand."""

    def __init__(self, twin: Any) -> None:
        self.twin = twin
        self.ends: list[tuple[socket.socket, socket.socket]] = []

    def connect(self) -> Connection[Any]:
        """Open a connection, as a pool asks for it."""
        ours, theirs = socket.socketpair()
        self.ends.append((ours, theirs))
        return Connection(self.twin.Wire(ours, 20.0), ours)

    def says(self, data: bytes) -> None:
        """Answer over the latest connection, whatever it will be asked."""
        self.ends[-1][1].sendall(data)

    def heard(self) -> bytes:
        """Return what was asked over the latest connection."""
        return self.ends[-1][1].recv(2**20)


class Rest:
    """Takes what is no plain hit, and remembers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answer: Any = None

    def __call__(self, keys: Any, connection: Any, found: Any, epoch: int, known: Any) -> list[Any]:
        self.calls.append((list(keys), connection, found, epoch, known))
        return [self.answer or f"answer to {key.decode()}" for key in keys]


class Node:
    """A reader with all that it reads from."""

    def __init__(self, twin: Any) -> None:
        self.peer = Peer(twin)
        self.pool: Pool[Any] = Pool(self.peer.connect, 4, patience=5)
        self.probe = Probe(NodeStats())
        self.epochs = _accel.EpochState()
        self.epochs.latest = 5
        self.rest = Rest()
        self.trust: Any = None
        self.read = twin.NodeReader(self.pool, self.probe, self.epochs, TAIL, FLAGS, self.rest)

    def opened(self) -> Connection[Any]:
        """Open a connection and leave it idle."""
        connection = self.pool.acquire()
        self.pool.release(connection)
        return connection


@pytest.fixture(params=USABLE, ids=lambda twin: twin.__name__)
def twin(request: pytest.FixtureRequest) -> Any:
    """Each twin that works with the pools of this process."""
    return request.param


@pytest.fixture
def node(twin: Any) -> Iterator[Node]:
    """A node of the test's own."""
    node = Node(twin)
    yield node
    for ours, theirs in node.peer.ends:
        ours.close()
        theirs.close()


def test_plain_hit(node: Node) -> None:
    """A plain hit is its value; the connection is idle again and serves the next one."""
    connection = node.opened()
    for _ in range(2):
        node.peer.says(PLAIN)
        assert node.read(b"key") == b"plain"
        assert node.peer.heard() == b"mg key N10 c f t v\r\n"
    assert node.pool.idle == [connection]
    assert node.rest.calls == []


def test_no_idle_connection(node: Node) -> None:
    """Without an idle connection nothing is asked here."""
    assert node.read(b"key") == "answer to key"
    assert node.read.many([b"a", b"b"]) == ["answer to a", "answer to b"]
    assert node.rest.calls == [([b"key"], None, None, 0, None), ([b"a", b"b"], None, None, 0, None)]
    assert node.peer.ends == []


def test_node_that_is_left_alone(node: Node) -> None:
    """A node that is marked down is not asked, though a connection is idle: guarded by the look at `delay`."""
    node.opened()
    node.probe.failed()
    assert node.read(b"key") == "answer to key"
    assert node.read.many([b"key"]) == ["answer to key"]
    assert [call[1:] for call in node.rest.calls] == [(None, None, 0, None)] * 2


class Meanwhile:
    """A wire that does something else before it answers."""

    def __init__(self, do: Callable[[], Any], found: Any) -> None:
        self._do = do
        self._found = found

    def hit(self, request: bytes, flags: int) -> Any:
        """Answer one lease-get."""
        return self.hits(request, 1, flags)[0]

    def hits(self, request: bytes, count: int, flags: int) -> list[Any]:
        """Answer lease-gets."""
        self._do()
        return [self._found] * count

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("many", [False, True])
def test_epoch_is_taken_before_sending(node: Node, many: bool) -> None:
    """The epoch is that before the request: a later connection may be to a restarted server, with old CAS numbers."""
    connection = node.opened()
    reply = node.peer.twin.parse_reply(WON, 0)[0]
    connection.wire = Meanwhile(lambda: setattr(node.epochs, "latest", 6), reply)
    if many:
        node.read.many([b"key"])
    else:
        node.read(b"key")
    assert node.rest.calls == [([b"key"], connection, [reply], 5, None)]
    assert node.pool.idle == []  # it is now for `rest` to give it back


@pytest.mark.parametrize("many", [False, True])
def test_pool_closed_meanwhile(node: Node, many: bool) -> None:
    """A connection of a pool that was closed during the exchange is closed, not given back: guarded by its term."""
    connection = node.opened()
    connection.wire = Meanwhile(node.pool.close, b"plain")
    assert (node.read.many([b"key"])[0] if many else node.read(b"key")) == b"plain"
    assert node.pool.idle == []
    assert node.pool.size == (0, 0)


def test_caller_that_waits_is_woken(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a connection is told when a plain hit gives one back: guarded by the look at `waiting`."""
    node.pool = Pool(node.peer.connect, 1, patience=20)
    node.read = node.peer.twin.NodeReader(node.pool, node.probe, node.epochs, TAIL, FLAGS, node.rest)
    connection = node.opened()
    waiting = threading.Event()

    def wait(condition: threading.Condition, deadline: float) -> bool:
        waiting.set()
        return condition.wait(60)  # nothing but a notification ends it

    monkeypatch.setattr(pool, "_wait", wait)
    taken: list[Any] = []
    waiter = threading.Thread(target=lambda: taken.append(node.pool.acquire()))

    def wait_for_waiter() -> None:
        waiter.start()
        assert waiting.wait(60)

    connection.wire = Meanwhile(wait_for_waiter, b"plain")
    assert node.read(b"key") == b"plain"
    waiter.join(15)
    assert taken == [connection]


@pytest.mark.parametrize("many", [False, True])
def test_broken_connection(node: Node, many: bool) -> None:
    """An error goes to `rest` with its connection, which is not idle any more."""
    connection = node.opened()
    node.peer.says(b"nonsense\r\n")
    assert (node.read.many([b"key"])[0] if many else node.read(b"key")) == "answer to key"
    [(keys, used, error, epoch, _)] = node.rest.calls
    assert (keys, used, epoch) == ([b"key"], connection, 5)
    assert type(error) is ProtocolError
    assert node.pool.idle == []


@pytest.mark.parametrize("many", [False, True])
def test_interrupted(node: Node, many: bool) -> None:
    """What interrupts an exchange closes its connection: half an answer may be left on it."""
    connection = node.opened()

    def interrupt() -> None:
        raise KeyboardInterrupt

    connection.wire = Meanwhile(interrupt, b"plain")
    with pytest.raises(KeyboardInterrupt):
        node.read.many([b"key"]) if many else node.read(b"key")
    assert node.pool.size == (0, 0)
    assert node.rest.calls == []


def test_marks(node: Node) -> None:
    """Each lease-get of a connection whose server takes our CAS numbers carries one of its own."""
    connection = node.opened()
    numbers = iter(range(1, 10))
    connection.mark = node.peer.twin.Marks(lambda bits: next(numbers), 2**62)
    node.peer.says(PLAIN)
    node.read(b"a")
    assert node.peer.heard() == b"mg a N10 c f t v E%d\r\n" % (2**62 + 1)
    node.peer.says(PLAIN * 2)
    assert node.read.many([b"b", b"c"]) == [b"plain", b"plain"]
    assert node.peer.heard() == b"".join(
        b"mg %b N10 c f t v E%d\r\n" % (k, 2**62 + n) for k, n in ((b"b", 2), (b"c", 3))
    )


def test_batch_of_both(node: Node) -> None:
    """When a batch brings more than plain hits, `rest` gets all of it, values as they are."""
    connection = node.opened()
    node.peer.says(PLAIN + WON + PLAIN)
    assert node.read.many([b"a", b"b", b"c"]) == ["answer to a", "answer to b", "answer to c"]
    [(_, used, found, *_)] = node.rest.calls
    assert used is connection
    assert (found[0], found[1].won, found[2]) == (b"plain", True, b"plain")


def test_large_batch(node: Node) -> None:
    """A batch is asked for in chunks of at most 32 KiB, so that no side waits for the other to read."""
    connection = node.opened()
    asked: list[int] = []

    class Counting(Meanwhile):
        """A wire that notes the sizes of requests."""

        def hits(self, request: bytes, count: int, flags: int) -> list[Any]:
            """Answer each."""
            asked.append(len(request))
            return [b"%d" % i for i in range(sum(asked) - len(request), sum(asked) - len(request) + count)]

    connection.wire = Counting(lambda: None, None)
    keys = [b"k" * 200] * 1000
    assert len(node.read.many(keys)) == 1000
    assert len(asked) > 5
    assert max(asked) <= 32 * 1024
    assert sum(asked) == 1000 * len(b"mg %b%b\r\n" % (keys[0], TAIL))
    assert node.read.many([]) == []


def test_ring_reader(twin: Any) -> None:
    """A key is read from its owner, whether that one's reader is compiled or not."""
    nodes = ring(["a:1", "b:1", "c:1"])
    readers = [lambda key, i=i: (i, key) for i in range(3)]
    read = twin.RingReader(nodes, readers)
    for n in range(50):
        key = b"key:%d" % n
        assert read(key) == (nodes.owner(key), key)
    with pytest.raises(ValueError, match="as many readers as nodes"):
        twin.RingReader(nodes, readers[:2])


KNOWN = _accel.RecordState()
KNOWN.head, KNOWN.prefix, KNOWN.marks = b"mg G v\r\nmg 05:", b"05:", frozenset([b"mark"])
KNOWN.reply = b"VA 6\r\nrecord\r\n"


@pytest.fixture
def guarded(node: Node) -> Node:
    """A node whose requests are guarded, and of whose record a reply is known."""
    trust = _accel.TrustState()
    trust.known = KNOWN
    node.trust = trust
    rest = node.rest
    node.read = node.peer.twin.NodeReader(node.pool, node.probe, node.epochs, TAIL, FLAGS, rest, trust, b"mark")
    return node


def test_guarded_hit(guarded: Node) -> None:
    """The record is read in front of the value, in the same write; if it is as known, the plain hit is its value."""
    connection = guarded.opened()
    guarded.peer.says(KNOWN.reply + PLAIN)
    assert guarded.read(b"key") == b"plain"
    assert guarded.peer.heard() == b"mg G v\r\nmg 05:key N10 c f t v\r\n"
    guarded.peer.says(KNOWN.reply + PLAIN * 2)
    assert guarded.read.many([b"a", b"b"]) == [b"plain", b"plain"]
    assert guarded.peer.heard() == b"mg G v\r\nmg 05:a N10 c f t v\r\nmg 05:b N10 c f t v\r\n"
    assert guarded.pool.idle == [connection]
    assert guarded.rest.calls == []


OTHER_RECORDS = {
    "absent": b"EN\r\n",
    "another": b"VA 6\r\nrecore\r\n",
    "longer": b"VA 7\r\nrecord2\r\n",
    "shorter": b"VA 5\r\nrecor\r\n",
    "a stub": b"VA 0 Z\r\n\r\n",
    "marked as stale": b"VA 6 X\r\nrecord\r\n",
    "being written": b"VA 6 Z\r\nrecord\r\n",
    "won by us": b"VA 6 W\r\nrecord\r\n",
    "an error": b"SERVER_ERROR out of memory\r\n",
    "printed otherwise": b"VA 06\r\nrecord\r\n",
}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("record", OTHER_RECORDS.values(), ids=OTHER_RECORDS.keys())
def test_another_record(guarded: Node, record: bytes, many: bool) -> None:
    """A value behind any other record is not given, however plain a hit it is. Guard: the memcmp of the record."""
    connection = guarded.opened()
    guarded.peer.says(record + PLAIN)
    assert (guarded.read.many([b"key"])[0] if many else guarded.read(b"key")) == "answer to key"
    [(keys, used, [first, value], epoch, known)] = guarded.rest.calls
    assert (keys, used, value, epoch, known) == ([b"key"], connection, b"plain", 5, KNOWN)
    assert shown(first) == shown(guarded.peer.twin.parse_reply(record, 0)[0])


@pytest.mark.parametrize("many", [False, True])
def test_guarded_lease(guarded: Node, many: bool) -> None:
    """What is no plain hit goes to `rest` with the verdict that the record is as known."""
    guarded.opened()
    guarded.peer.says(KNOWN.reply + WON)
    assert (guarded.read.many([b"key"])[0] if many else guarded.read(b"key")) == "answer to key"
    [(_, _, [first, reply], _, known)] = guarded.rest.calls
    assert (first, reply.won, known) == (None, True, KNOWN)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("known", [None, "another function's"])
def test_nothing_to_ask_under(guarded: Node, known: str | None, many: bool) -> None:
    """Nothing is asked without a record, or under one that lacks the function. Guard: the look at `marks`."""
    connection = guarded.opened()
    record = _accel.RecordState()
    record.head, record.prefix, record.reply, record.marks = (
        KNOWN.head,
        KNOWN.prefix,
        KNOWN.reply,
        frozenset([b"other"]),
    )
    guarded.trust.known = record if known else None
    assert (guarded.read.many([b"key"])[0] if many else guarded.read(b"key")) == "answer to key"
    assert guarded.rest.calls[0][:2] == ([b"key"], None)
    assert guarded.pool.idle == [connection]


def test_unguarded_answer(guarded: Node) -> None:
    """The guard's refusal is raised for one key, and stands in the place of each of many."""
    error = GuardError("nobody vouches")
    guarded.rest.answer = error
    with pytest.raises(GuardError, match="nobody vouches"):
        guarded.read(b"key")
    assert guarded.read.many([b"a", b"b"]) == [error, error]


def test_guarded_keys_of_a_ring(guarded: Node) -> None:
    """The ring hashes the logical key: the generation is put in front by the owner's reader."""
    nodes = [guarded.read, lambda key: b"the other's"]
    twin_ring = ring(["a", "b"])
    reader = guarded.peer.twin.RingReader(twin_ring, nodes)
    keys = [b"key:%d" % i for i in range(20)]
    guarded.opened()
    for key in keys:
        mine = twin_ring.owner(key) == 0
        if mine:
            guarded.peer.says(KNOWN.reply + PLAIN)
        assert reader(key) == (b"plain" if mine else b"the other's")
        if mine:
            assert guarded.peer.heard() == b"mg G v\r\nmg 05:%b%b\r\n" % (key, TAIL)


def shown(reply: Any) -> Any:
    """Return a reply as a tuple, which can be compared."""
    return reply and (reply.code, reply.value, bool(reply.won), bool(reply.stale), bool(reply.taken))
