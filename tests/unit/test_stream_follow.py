"""The loop, with a server and a gate that do what the test says: keepalives, back-pressure, garbage, silence."""

import os
import struct
import time
from collections.abc import Iterator

import pytest

from leasecache.errors import NodeError, SourceError
from leasecache.invalidation.dispatch import Dispatcher
from leasecache.invalidation.follow import Follower, Limits
from leasecache.invalidation.gate import Answer, View
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.stream import Stream
from tests.unit.test_stream import Recorder, data, keepalive
from tests.unit.test_stream_dispatch import NO_RULES, UNGUARDED, FakeNode, FakeRing


def replayed(position: int, rewound: str | None = None) -> View:
    """Return what a standby shows that has replayed so far."""
    return View((Answer(True, 0, frozenset(), position),), rewound)


def running(*xids: int) -> View:
    """Return what a primary shows on which these are in progress."""
    return View((Answer(False, 10, frozenset(xids)),))


ALL, NONE = replayed(1 << 60), replayed(0)


class FakeServer:
    """A replication conversation made of lists."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.sent: list[bytes] = []
        self.ear, self.bell = os.pipe()
        self.socket = self.ear
        self.stopped = False

    def read(self, limit: int) -> list[bytes]:
        """Hand out frames."""
        taken, self.frames[:] = self.frames[:limit], self.frames[limit:]
        return taken

    def send(self, frame: bytes) -> None:
        """Keep a status."""
        self.sent.append(frame)

    def flush(self) -> bool:
        """Have nothing queued."""
        return False

    def stop(self, timeout: float) -> None:
        """Remember the end."""
        self.stopped = True

    @property
    def acknowledged(self) -> list[int]:
        """Return the positions of the statuses."""
        return [struct.unpack("!cQQQqB", frame)[2] for frame in self.sent]


class FakeGate:
    """Readers that answer at once what they are told to, or are away."""

    def __init__(self) -> None:
        self.asked = False
        self.view: View | None = ALL
        self.sockets: list[int] = []
        self.server: str | None = "the source"
        self.due: float | None = None
        self.released = 0
        self.questions = 0
        self.trusted = 0

    @property
    def doubtful(self) -> bool:
        """Whether somebody is away, or went back."""
        return self.view is None or self.view.rewound is not None

    def ask(self) -> None:
        """Count a question."""
        self.asked = True
        self.questions += 1

    def answer(self) -> View | None:
        """Answer what has been asked."""
        if not self.asked or self.view is None:
            return None
        self.asked = False
        return self.view

    def trust(self) -> None:
        """Count, and forget what was in doubt."""
        assert self.view is not None
        self.trusted += 1
        self.view = self.view._replace(rewound=None)


class Rig:
    """A follower among fakes; `turn` never waits long."""

    def __init__(self, **limits: float) -> None:
        self.server, self.gate, self.node = FakeServer(), FakeGate(), FakeNode("")
        self.monitor = Monitor()
        self.ear, self.bell = os.pipe()
        self.dispatcher = Dispatcher([FakeRing(self.node)], NO_RULES, UNGUARDED, self.monitor, lambda: None)
        self.dispatcher.begin("system", 0, 0.0, known=True)
        settings = Limits(**{"acknowledge_every": 0.0, "status_every": 0.01, "silence": 0.0, **limits})  # type: ignore[arg-type]
        self.follower = Follower(
            self.server,  # type: ignore[arg-type]
            self.gate,  # type: ignore[arg-type]
            Stream(Recorder()),
            self.dispatcher,
            self.monitor,
            settings,
        )

    def transaction(self, position: int, xid: int = 7, relid: int = 1, rows: int = 1) -> None:
        """Let the server send a transaction that ends at `position`."""
        self.server.frames.append(data(b"B" + struct.pack("!QqI", position - 1, 0, xid)))
        self.server.frames += [data(struct.pack("!cIch", b"I", relid * 10**6 + i, b"N", 0)) for i in range(rows)]
        self.server.frames.append(data(b"C" + struct.pack("!BQQq", 0, position - 1, position, 0)))

    def turn(self, times: int = 1) -> None:
        """Let the loop turn."""
        for _ in range(times):
            self.follower.turn(self.ear)

    def until(self, position: int) -> None:
        """Let the loop turn until the server has been told `position`."""
        deadline = time.monotonic() + 60
        while position not in self.server.acknowledged:
            assert time.monotonic() < deadline, self.server.acknowledged
            self.turn()

    def close(self) -> None:
        """Let threads and descriptors go."""
        self.node.open.set()
        self.dispatcher.close()
        for descriptor in (self.ear, self.bell, self.server.ear, self.server.bell):
            os.close(descriptor)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A follower with default pressure."""
    made = Rig()
    yield made
    made.close()


def test_a_transaction_is_acknowledged_at_its_end(rig: Rig) -> None:
    """What is acknowledged is the end of the transaction, after its node has answered."""
    rig.node.open.clear()
    rig.transaction(100)
    rig.turn(5)
    assert set(rig.server.acknowledged) == {0}
    rig.node.open.set()
    rig.until(100)
    assert rig.node.calls == [([b"1000000"], 0.0)]
    assert rig.follower.idle


def test_keepalives_are_answered_while_the_gate_holds(rig: Rig) -> None:
    """A reply that is asked for is sent in the same turn, with W unmoved, however long the gate holds."""
    rig.gate.view = NONE
    rig.transaction(100)
    rig.turn(3)
    for wal_end in range(200, 220):
        before = len(rig.server.sent)
        rig.server.frames.append(keepalive(wal_end, reply=1))
        rig.turn()
        assert len(rig.server.sent) > before
    assert set(rig.server.acknowledged) == {0}
    rig.gate.view = ALL
    rig.until(219)  # the last keepalive's end, behind the transaction


def test_a_keepalive_within_a_transaction_moves_nothing(rig: Rig) -> None:
    """While a transaction is coming in, a keepalive's position says nothing about it."""
    rig.transaction(100)
    commit = rig.server.frames.pop()
    rig.server.frames.append(keepalive(500, reply=1))
    rig.turn(3)
    assert set(rig.server.acknowledged) == {0}
    rig.server.frames.append(commit)
    rig.until(100)
    assert 500 not in rig.server.acknowledged


def test_a_transaction_received_after_the_question_waits_for_the_next(rig: Rig) -> None:
    """An answer releases what had been received when it was asked: a standby may be promoted in between."""
    answers: list[View] = []
    rig.gate.answer = lambda: answers.pop() if answers else None  # type: ignore[method-assign]
    rig.transaction(100)
    rig.turn()
    assert rig.gate.questions == 1
    rig.transaction(200, relid=2)
    rig.turn()
    answers.append(ALL)
    rig.until(100)
    assert 200 not in rig.server.acknowledged
    assert [keys for keys, _ in rig.node.calls] == [[b"1000000"]]


def test_a_visible_transaction_does_not_wait_for_an_earlier_one(rig: Rig) -> None:
    """Keys go as soon as their transaction is visible; W waits for the prefix."""
    rig.gate.view = running(7)
    rig.transaction(100, xid=7, relid=1)
    rig.turn()  # what comes in at once, goes at once
    rig.transaction(200, xid=8, relid=2)
    deadline = time.monotonic() + 60
    while not rig.node.calls and time.monotonic() < deadline:
        rig.turn()
    assert [keys for keys, _ in rig.node.calls] == [[b"2000000"]]
    assert set(rig.server.acknowledged) == {0}
    rig.gate.view = running()
    rig.until(200)


def test_w_is_held_while_a_reader_is_away(rig: Rig) -> None:
    """Nobody knows what a reader that is away shows: neither transactions nor keepalives move W, and both go on later.

    Guard: positions wait while a reader is away.
    """
    rig.turn(3)
    rig.gate.view = None
    rig.server.frames.append(keepalive(150, reply=1))
    rig.turn(2)
    rig.transaction(200)
    rig.server.frames.append(keepalive(250, reply=1))
    sent = len(rig.server.sent)
    rig.turn(3)
    rig.follower.looked()  # at the catalogues, which lets W go on as far as it may
    rig.turn(3)
    assert len(rig.server.sent) > sent
    assert set(rig.server.acknowledged) == {0}
    assert (rig.node.calls, rig.monitor.state.held) == ([], 1)
    rig.gate.view = ALL
    rig.until(250)


def test_nothing_is_released_to_readers_that_went_back(rig: Rig) -> None:
    """A reader went back in time: new generations come first, and before them whatever was released must be back.

    Guards: what was released is shown again before the bump; the bump comes before any later position.
    """
    rig.transaction(100)
    rig.until(100)
    assert rig.gate.released == 100
    happened = []
    rig.dispatcher.bump = lambda reason: happened.append((reason, rig.dispatcher.acknowledged))  # type: ignore[method-assign]
    rig.gate.view = replayed(99, "replica restarted")
    rig.transaction(90, relid=2)  # repeated, and long shown again
    rig.server.frames.append(keepalive(150, reply=1))
    rig.turn(20)
    assert (happened, len(rig.node.calls), max(rig.server.acknowledged)) == ([], 1, 100)
    rig.gate.view = replayed(100, "replica restarted")
    rig.until(150)
    assert happened == [("replica restarted", 100)]
    assert (rig.gate.trusted, len(rig.node.calls)) == (1, 2)


def test_readers_that_went_back_while_nothing_happens(rig: Rig) -> None:
    """Generations change without waiting for a transaction: hits are old until then. Guard: asking while in doubt."""
    rig.gate.released = 100
    rig.turn(3)
    rig.gate.view = replayed(100, "replica restarted")
    rig.turn(20)
    assert rig.gate.trusted == 1


def test_an_idle_gate_is_left_alone() -> None:
    """While nothing is held readers are asked rarely; a transaction is asked about at once."""
    rig = Rig(gate_idle=3600.0)
    rig.turn(20)
    before = rig.gate.questions
    assert before <= 1
    rig.transaction(100)
    rig.until(100)
    assert rig.gate.questions == before + 1
    rig.close()


def test_too_much_pending_stops_reading() -> None:
    """When a node is away the stream is read up to the limit and no further, and reports go on."""
    rig = Rig(pending=50, frames=12)
    rig.node.error = NodeError("gone")
    for i in range(100):
        rig.transaction(100 + i, relid=i + 1, rows=10)
    rig.turn(60)
    left = len(rig.server.frames)
    reports = len(rig.server.sent)
    assert len(rig.dispatcher) <= 70
    rig.turn(30)
    assert len(rig.server.frames) == left > 1000
    assert len(rig.server.sent) > reports
    rig.node.error = None
    rig.until(199)
    assert {key for keys, _ in rig.node.calls for key in keys} == {
        b"%d" % ((i + 1) * 10**6 + row) for i in range(100) for row in range(10)
    }
    rig.close()


def test_garbage_ends_the_conversation(rig: Rig) -> None:
    """A frame that makes no sense is counted and ends the conversation with a SourceError."""
    rig.server.frames.append(b"w" + bytes(24) + b"\xff")
    with pytest.raises(SourceError):
        rig.turn()
    assert rig.monitor.figures.registry.get_sample_value("leasecache_daemon_decode_errors_total") == 1


def test_silence_ends_the_conversation() -> None:
    """A server that sends nothing, although every report asks it to, is taken for dead."""
    rig = Rig(silence=0.05)
    with pytest.raises(SourceError, match="silent"):
        rig.turn(100)
    assert all(frame[-1] == 1 for frame in rig.server.sent[1:])
    rig.close()


def test_draining_reads_nothing_more(rig: Rig) -> None:
    """Draining finishes what has been received, leaves the rest to the next daemon, and acknowledges."""
    rig.transaction(100)
    rig.turn()
    rig.transaction(200)
    assert rig.follower.drain(rig.ear, lambda: None)
    assert (rig.server.acknowledged[-1], len(rig.server.frames), rig.server.stopped) == (100, 3, True)


def test_draining_gives_up() -> None:
    """A node that stays away does not keep the daemon from ending."""
    rig = Rig(drain=0.05)
    rig.node.open.clear()
    rig.transaction(100)
    rig.turn(3)
    assert not rig.follower.drain(rig.ear, lambda: None)
    assert rig.server.acknowledged[-1] == 0
    rig.close()


def message(content: bytes, prefix: bytes = b"leasecache") -> bytes:
    """Return the frame of a commit message."""
    head = b"M" + struct.pack("!BQ", 1, 5) + prefix + b"\0"
    return data(head + struct.pack("!i", len(content)) + content)


def test_frames_that_flood_in_are_let_come_together() -> None:
    """After many frames at once the socket is left alone for a moment, while gate and nodes go on; then all is read."""
    for collect in (3600.0, 0.2):
        rig = Rig(flood=8, collect=collect)
        rig.transaction(100, rows=10)
        began = time.monotonic()
        rig.turn()
        rig.transaction(200, relid=2)
        rig.until(100)
        if collect == 3600:
            rig.turn(20)
            assert len(rig.server.frames) == 3
        else:
            rig.until(200)
            assert time.monotonic() - began >= 0.2
        rig.close()


def test_what_comes_late_is_let_come_together_for_longer() -> None:
    """A source that catches up is read in larger pieces; what it sends at once after the commit is not kept waiting."""
    for sent, waiting in ((0, 0), (10_000_000, 3)):  # µs after the commit
        rig = Rig(flood=8, collect=0.0, collect_part=360.0, collect_most=3600.0)
        rig.transaction(100, rows=10)
        rig.server.frames = [frame[:17] + struct.pack("!q", sent) + frame[25:] for frame in rig.server.frames]
        rig.turn()
        rig.transaction(200, relid=2)
        rig.turn(20)
        assert len(rig.server.frames) == waiting
        rig.close()


def test_a_few_frames_are_read_at_once() -> None:
    """Guard: the threshold. A transaction that comes alone waits for no other."""
    rig = Rig(flood=8, collect=30.0)
    for position in (100, 200, 300):
        rig.transaction(position)
        rig.until(position)
    rig.close()


def test_a_source_that_never_stops_talking() -> None:
    """Guard: `everything`. What no descriptor announces is looked at all the same, here an answer of the gate."""
    rig = Rig(everything=0.05)
    os.write(rig.server.bell, b"!")  # which nobody reads, so that the source always has something to say
    rig.transaction(100)
    rig.until(100)
    rig.close()


def test_what_gives_up_everything_is_handed_over_when_it_is_visible(rig: Rig) -> None:
    """Guard: the gate. New generations are asked for once the transaction is visible, and what was named goes then."""
    bumps: list[str] = []
    puts: list[dict[bytes, float]] = []
    rig.dispatcher.bump = bumps.append  # type: ignore[assignment,method-assign]
    rig.dispatcher.put = lambda keys, explicit=None: puts.append(explicit or {})  # type: ignore[method-assign]
    rig.gate.view = NONE
    stream = Stream(Recorder(), most_keys=2)
    rig.follower._stream = stream
    rig.transaction(100, rows=5)
    rig.server.frames.insert(1, message(b"named"))
    rig.turn(5)
    assert (bumps, puts) == ([], [])
    rig.gate.view = ALL
    rig.until(100)
    assert (bumps, puts) == (["keys"], [{b"named": 5.0}])


def test_a_command_that_becomes_visible_last(rig: Rig) -> None:
    """Guard: `_drifting` is kept until W passes. A look before all of what came at once is visible is not enough."""
    rig.gate.view = running(7)
    rig.server.frames.append(data(b"B" + struct.pack("!QqI", 99, 0, 7)))
    rig.server.frames.append(message(b"ALTER PUBLICATION", prefix=b"leasecache.ddl"))
    rig.server.frames.append(data(b"C" + struct.pack("!BQQq", 0, 99, 100, 0)))
    rig.transaction(200, xid=8)
    rig.turn(5)
    rig.follower.looked()
    rig.gate.view = running()
    rig.turn(10)
    assert rig.follower.drifts == ["ALTER PUBLICATION"]
    assert set(rig.server.acknowledged) == {0}
    rig.follower.looked()
    rig.until(200)
    assert not rig.follower._drifting


def test_a_source_that_takes_no_other_connection(rig: Rig) -> None:
    """Guard: `_leave`. A server that stops waits for its walsenders: the conversation ends, but not for a blip."""
    rig.gate.server = None
    rig.turn()
    rig.gate.server = "the source"
    rig.turn()
    rig.gate.server = None
    began = time.monotonic()
    with pytest.raises(SourceError, match="takes no other connection"):
        rig.until(10**9)
    assert time.monotonic() >= began + Limits().leave
