"""Assembling transactions from frames, and acknowledging them."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.errors import SourceError
from leasecache.invalidation.lsn import format_lsn, parse_lsn
from leasecache.invalidation.pgoutput import Change, Commit, Delete, Insert, Relation, Update, decode
from leasecache.invalidation.stream import (
    Data,
    Drift,
    Event,
    Garbage,
    Keepalive,
    Loss,
    Stream,
    Touched,
    Transaction,
    parse_frame,
    status_update,
    unix_to_micros,
)
from leasecache.invalidation.walker import Walker

GOLDEN = Path(__file__).parents[1] / "golden"
BEGIN = b"B" + struct.pack("!QqI", 100, 1_000_000, 7)
COMMIT = b"C" + struct.pack("!BQQq", 0, 100, 120, 1_000_000)
INSERT = struct.pack("!cIch", b"I", 1, b"N", 0)


class Recorder:
    """Rows that remember what they were given and touch one key for each change."""

    def __init__(self) -> None:
        self.relations: list[Relation] = []
        self.walker = Walker()

    def describe(self, relation: Relation) -> None:
        """Remember a relation."""
        self.relations.append(relation)

    def route(self, change: Change, touched: Touched) -> None:
        """Touch the key that is named after the relation."""
        if isinstance(change, (Insert, Update, Delete)):
            touched.keys[b"%d" % change.relid] = 0.0

    def hear(self, content: bytes, touched: Touched) -> str | None:
        """Touch the key that is the message, unless it is empty."""
        if content:
            touched.name(content, 5.0)
        return None if content else "empty"


def data(payload: bytes, wal_end: int = 0) -> bytes:
    """Return the frame that carries `payload`."""
    return b"w" + struct.pack("!QQq", 0, wal_end, 0) + payload


def keepalive(wal_end: int, reply: int = 0) -> bytes:
    """Return a keepalive frame."""
    return b"k" + struct.pack("!QqB", wal_end, 0, reply)


def receive(stream: Stream, frame: bytes) -> Event | None:
    """Let a stream take one frame, which means one thing at most."""
    events = stream.feed([frame])
    assert len(events) < 2
    return events[0] if events else None


def captured(version: int) -> Iterator[bytes]:
    """Yield the payloads that a real server sent."""
    for line in (GOLDEN / f"pgoutput_{version}.txt").read_text(encoding="utf-8").splitlines():
        yield bytes.fromhex(line.split(" ", 1)[0])


@pytest.mark.parametrize("version", [16, 18])
def test_a_captured_conversation(version: int) -> None:
    """Every commit of a real conversation becomes one transaction that ends at Commit.end_lsn."""
    stream = Stream(Recorder())
    got = [receive(stream, data(payload)) for payload in captured(version)]
    commits = [message for message in map(decode, captured(version)) if isinstance(message, Commit)]
    assert [t.end_lsn for t in got if isinstance(t, Transaction)] == [commit.end_lsn for commit in commits]
    assert not any(isinstance(event, Keepalive) and event.within for event in stream.feed([keepalive(0)]))


def test_keys_are_a_set() -> None:
    """Keys of one transaction are de-duplicated while it streams, its rows are counted."""
    stream = Stream(Recorder())
    receive(stream, data(BEGIN))
    for _ in range(1000):
        assert receive(stream, data(INSERT)) is None
    done = receive(stream, data(COMMIT))
    assert isinstance(done, Transaction)
    assert (done.xids, done.end_lsn, done.committed_at) == ((7,), 120, 946_684_801.0)
    assert (done.touched.keys, done.touched.rows) == ({b"1": 0.0}, 1000)


def test_transactions_do_not_share_keys() -> None:
    """What one transaction touched is not in the next one."""
    stream = Stream(Recorder())
    for payload in (BEGIN, INSERT, COMMIT, BEGIN):
        receive(stream, data(payload))
    done = receive(stream, data(COMMIT))
    assert isinstance(done, Transaction)
    assert done.touched == Touched()


def test_transactions_that_come_at_once() -> None:
    """Transactions of one batch of frames are handed over as one, up to whatever comes between them and says more."""
    second = (BEGIN[:-4] + struct.pack("!I", 8), INSERT, COMMIT[:-16] + struct.pack("!Qq", 140, 2_000_000))
    frames = [data(payload) for payload in (BEGIN, INSERT, COMMIT, *second)]
    (both,) = Stream(Recorder()).feed([*frames, data(BEGIN), data(INSERT)])
    assert isinstance(both, Transaction)
    assert (both.xids, both.end_lsn, both.committed_at) == ((7, 8), 140, 946_684_801.0)
    assert (both.touched.keys, both.touched.rows) == ({b"1": 0.0}, 2)
    between = keepalive(130, reply=1)
    kinds = [type(event) for event in Stream(Recorder()).feed([*frames[:3], between, *frames[3:]])]
    assert kinds == [Transaction, Keepalive, Transaction]


def test_keepalives_between_transactions() -> None:
    """What a keepalive says of the log before a commit the commit says as well; behind it the last one counts."""
    transaction = [data(BEGIN), data(INSERT), data(COMMIT)]
    stream = Stream(Recorder())
    (first, last) = stream.feed(
        [keepalive(90), *transaction, keepalive(130), *transaction, keepalive(140), keepalive(150)]
    )
    assert isinstance(first, Transaction)
    assert first.xids == (7, 7)
    assert last == Keepalive(150, reply_requested=False)
    assert stream.received == 150
    assert stream.feed([]) == []
    assert stream.feed([keepalive(160), *transaction[:2]]) == [Keepalive(160, reply_requested=False)]
    assert [type(event) for event in stream.feed(transaction[2:])] == [Transaction]


def test_a_keepalive_tells_whether_it_counts() -> None:
    """Guard: `within`. What a keepalive says while a transaction is coming in is not about that transaction."""
    frames = [keepalive(1), data(BEGIN), keepalive(2), data(COMMIT), keepalive(3)]
    told = [event.within for event in Stream(Recorder()).feed(frames) if isinstance(event, Keepalive)]
    assert told == [False, True, False]


@pytest.mark.parametrize(
    "payloads",
    [
        (INSERT,),
        (COMMIT,),
        (BEGIN, BEGIN),
        (BEGIN, b"C" + struct.pack("!BQQq", 0, 99, 120, 0)),
        (BEGIN, COMMIT, COMMIT),
    ],
)
def test_messages_out_of_order(payloads: tuple[bytes, ...]) -> None:
    """A row outside a transaction, a second Begin and a Commit of another transaction are SourceErrors."""
    stream = Stream(Recorder())
    for payload in payloads[:-1]:
        receive(stream, data(payload))
    with pytest.raises(SourceError):
        receive(stream, data(payloads[-1]))


def emitted(content: bytes, *, prefix: bytes = b"leasecache", transactional: int = 1) -> bytes:
    """Return what `pg_logical_emit_message` puts into the stream."""
    return b"M" + struct.pack("!BQ", transactional, 5) + prefix + b"\0" + struct.pack("!i", len(content)) + content


def test_commit_messages_belong_to_their_transaction() -> None:
    """What a message of our prefix names is touched by its transaction; those of others are passed over."""
    stream = Stream(Recorder())
    for payload in (BEGIN, emitted(b"a"), emitted(b"b", prefix=b"leasecache.x"), emitted(b"c", prefix=b""), INSERT):
        assert receive(stream, data(payload)) is None
    done = receive(stream, data(COMMIT))
    assert isinstance(done, Transaction)
    assert (done.touched.keys, done.touched.explicit, done.touched.messages) == ({b"1": 0.0}, {b"a": 5.0}, 1)


def test_keys_of_rows_and_messages_are_kept_apart() -> None:
    """A key that both name is one key, and what a message says of it is not what a row says."""
    touched = Touched()
    touched.touch(b"a", 5.0)
    touched.name(b"a", 1.0)
    touched.name(b"b", 2.0)
    assert (len(touched), touched.keys, touched.explicit) == (2, {b"a": 5.0}, {b"a": 1.0, b"b": 2.0})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (emitted(b""), "empty"),
        (emitted(b"a", transactional=0), "sent without regard to its transaction"),
        (emitted(b"ALTER TABLE", prefix=b"leasecache.ddl", transactional=0), "sent without regard to its transaction"),
    ],
)
def test_garbled_messages(payload: bytes, reason: str) -> None:
    """A message that is not understood, or that a rolled back transaction may have sent, is handed back as garbage."""
    stream = Stream(Recorder())
    receive(stream, data(BEGIN))
    assert receive(stream, data(payload)) == Garbage(reason)
    done = receive(stream, data(COMMIT))
    assert isinstance(done, Transaction)
    assert done.touched.keys == {}


def test_drift() -> None:
    """A tag that an event trigger sent is handed back, whatever its bytes; it touches nothing."""
    stream = Stream(Recorder())
    receive(stream, data(BEGIN))
    assert receive(stream, data(emitted(b"ALTER TABLE", prefix=b"leasecache.ddl"))) == Drift("ALTER TABLE")
    assert receive(stream, data(emitted(b"\xff" * 10**6, prefix=b"leasecache.ddl"))) == Drift("\ufffd" * 200)
    done = receive(stream, data(COMMIT))
    assert isinstance(done, Transaction)
    assert done.touched == Touched()


class Distinct(Recorder):
    """Rows that each touch a key of their own, and messages that name as many as they have bytes."""

    def route(self, change: Change, touched: Touched) -> None:
        """Touch a new key."""
        touched.touch(b"row:%d" % touched.rows, 0.0)

    def hear(self, content: bytes, touched: Touched) -> str | None:
        """Touch new keys."""
        for i in range(len(content)):
            touched.name(b"%b:%d" % (content[:1], i), 0.0)
        return None


def overflowing(*payloads: bytes) -> tuple[Touched, int]:
    """Return what a transaction of these messages touches under a limit of 10 keys, and the most it held."""
    stream, most = Stream(Distinct(), most_keys=10), 0
    receive(stream, data(BEGIN))
    for payload in payloads:
        receive(stream, data(payload))
        most = max(most, len(stream.touched.keys))
    done = receive(stream, data(COMMIT))
    assert isinstance(done, Transaction)
    return done.touched, most


def test_too_many_keys() -> None:
    """Guard: the limit of keys. A transaction over it holds no more than so many, and says that keys are missing."""
    assert overflowing(*[INSERT] * 10)[0].everything is None
    touched, most = overflowing(*[INSERT] * 25)
    assert (touched.keys, touched.everything, touched.rows) == ({}, "keys", 25)
    assert touched.losses == {Loss("keys", "*", "*"): 1}
    assert most <= 10


def test_explicit_keys_outlast_those_of_rows() -> None:
    """Guard: the split of keys. Over the limit, keys of messages stay, because no new generation replaces them."""
    touched, _ = overflowing(*[INSERT] * 8, emitted(b"mmm"), *[INSERT] * 30)
    assert (touched.keys, {*touched.explicit}) == ({}, {b"m:0", b"m:1", b"m:2"})
    assert touched.losses == {Loss("keys", "*", "*"): 1}


def test_too_many_explicit_keys() -> None:
    """Messages alone may be too many as well: that is a loss of its own."""
    touched, _ = overflowing(emitted(b"mmm"), emitted(b"n" * 8), INSERT)
    assert (touched.keys, touched.explicit, touched.everything) == ({b"row:1": 0.0}, {}, "messages")
    assert touched.losses == {Loss("messages", "*", "*"): 1}


def test_a_message_outside_of_transactions() -> None:
    """A message that no transaction holds is garbage, and the stream goes on."""
    stream = Stream(Recorder())
    assert receive(stream, data(emitted(b"a"))) == Garbage("sent without regard to its transaction")
    assert receive(stream, data(BEGIN)) is None


def test_relations_do_not_move_the_position() -> None:
    """Relation frames carry position 0; what has been received never goes back."""
    stream = Stream(Recorder())
    receive(stream, keepalive(500))
    receive(stream, data(next(p for p in captured(18) if p[:1] == b"R"), wal_end=0))
    assert stream.received == 500


def test_frames() -> None:
    """Frames are read as the protocol lays them out."""
    assert parse_frame(keepalive(7, 1)) == Keepalive(wal_end=7, reply_requested=True)
    assert parse_frame(data(b"payload", 9)) == Data(wal_end=9, payload=b"payload")


@pytest.mark.parametrize("frame", [data(b""), keepalive(1)])
def test_truncated_frames(frame: bytes) -> None:
    """A frame cut at any point is a SourceError; so is a keepalive with more bytes."""
    for length in range(len(frame)):
        with pytest.raises(SourceError):
            parse_frame(frame[:length])
    with pytest.raises(SourceError):
        parse_frame(keepalive(1) + b"\0")


@given(st.binary(max_size=100))
def test_no_frame_crashes_it(frame: bytes) -> None:
    """Any bytes are taken, or are a SourceError."""
    try:
        Stream(Recorder()).feed([frame])
    except SourceError:
        return


def test_status_update() -> None:
    """A status says the same position three times: written, flushed and applied are one for us."""
    frame = status_update(0x16B374D848, 946_684_801.5, reply_requested=True)
    assert struct.unpack("!cQQQqB", frame) == (b"r", *[0x16B374D848] * 3, 1_500_000, 1)
    assert unix_to_micros(946_684_800) == 0


@given(st.integers(0, 2**64 - 1))
def test_lsn_round_trip(position: int) -> None:
    """A position reads back from how Postgres prints it."""
    assert parse_lsn(format_lsn(position)) == position


@pytest.mark.parametrize("text", ["", "1", "/", "1/", "x/1", "1/2/3", "123456789/0", "1/2\n"])
def test_not_an_lsn(text: str) -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match="log sequence number"):
        parse_lsn(text)
