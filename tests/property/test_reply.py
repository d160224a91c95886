"""The reader of meta-protocol replies: compiled and pure agree on any bytes, however they arrive."""

import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leasecache import _accel
from leasecache.errors import ProtocolError
from leasecache.metrics import NodeStats
from leasecache.stores.pool import EPOCH, Connection, Pool
from leasecache.stores.probe import Probe
from tests.twins import TWINS, USABLE, each_twin, outcome

LINE_LIMIT = 2048

_numbers = st.integers(0, 2**64 + 2) | st.sampled_from(
    [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 10**19, 10**20]
)
_number = _numbers.map(lambda number: b"%d" % number) | st.sampled_from(
    [b"", b"-1", b"-2", b"+1", b"007", b"1_0", "１".encode()]
)
_flag = st.builds(lambda name, number: name + number, st.sampled_from([b"f", b"c", b"t", b"O"]), _number)
_token = st.one_of(_flag, st.sampled_from([b"W", b"X", b"Z", b"t-1", b"", b"k", b"Wx", b"s3"]), st.binary(max_size=3))
_code = st.sampled_from(
    [b"HD", b"EN", b"NF", b"NS", b"EX", b"MN", b"ME", b"SERVER_ERROR", b"", b"va", b"END", b"CLIENT_ERROR"]
)
_end = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"", b"\r\r\n"])


@st.composite
def _plain(draw: st.DrawFn) -> bytes:
    tokens = draw(st.lists(_token, max_size=6))
    return b" ".join([draw(_code), *tokens]) + draw(_end)


@st.composite
def _value(draw: st.DrawFn) -> bytes:
    body = draw(st.binary(max_size=30) | st.just(b"\r\nHD\r\n"))
    size = draw(st.just(b"%d" % len(body)) | _number)
    head = b" ".join([b"VA", size, *draw(st.lists(_token, max_size=4))])
    return head + draw(_end) + body + draw(_end)


@st.composite
def _garbled(draw: st.DrawFn) -> bytes:
    data = draw(_plain() | _value())
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]


REPLIES = st.one_of(_plain(), _value(), _garbled(), st.lists(_plain() | _value(), max_size=3).map(b"".join))


def read(twin: Any, data: bytes, start: int) -> tuple[Any, ...] | None:
    """Return every field of the reply and where the next begins, None, or what was raised."""
    try:
        parsed = twin.parse_reply(data, start)
    except (ProtocolError, ValueError) as error:
        return ("raised", type(error), str(error))
    if parsed is None:
        return None
    reply, end = parsed
    marks = (bool(reply.won), bool(reply.stale), bool(reply.taken))
    return (reply.code, reply.value, reply.flags, reply.cas, reply.ttl, reply.opaque, *marks, end)


def line(size: int) -> bytes:
    """Return an ME reply whose line has `size` bytes."""
    return b"ME " + b"x" * (size - 3) + b"\r\n"


@given(data=REPLIES | st.binary(max_size=200), start=st.integers(-2, 12))
@example(data=b"HD \r\n", start=0)
@example(data=b"VA\r\n", start=0)
@example(data=b"VA 1 \r\nx\r\n", start=0)
@example(data=b"VA 0\r\n\r\n", start=0)
@example(data=b"HD c18446744073709551615\r\n", start=0)
@example(data=b"HD c18446744073709551616\r\n", start=0)
@example(data=b"HD c000000000000000000001\r\n", start=0)
@example(data=line(LINE_LIMIT), start=0)
@example(data=line(LINE_LIMIT + 1), start=0)
@example(data=line(LINE_LIMIT)[:-1], start=0)
@example(data=line(LINE_LIMIT + 1)[:-1], start=0)
@example(data=b"HD\r\n", start=5)
def test_twins_agree(data: bytes, start: int) -> None:
    """Both readers give the same reply, both want more, or both raise the same error with the same message."""
    results = [read(twin, data, start) for twin in TWINS]
    assert results.count(results[0]) == len(results)


def answered(twin: Any, call: str, data: bytes, *arguments: Any) -> tuple[Any, ...]:
    """Return what a wire makes of `data` and the end of the connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        found = outcome(getattr(twin.Wire(ours, 20.0), call), b"mg\r\n", *arguments)
    return (found[0], shown(found[1]), *found[2:])


def shown(found: Any) -> Any:
    """Return replies as tuples, which can be compared."""
    if isinstance(found, list):
        return [shown(one) for one in found]
    if hasattr(found, "cas"):
        return (found.code, found.value, found.flags, found.cas, found.ttl, found.won, found.stale, found.taken)
    return found


@st.composite
def _plain_hit(draw: st.DrawFn) -> bytes:
    """A plain hit as servers print it, at times with a mark, other flags, or a number at the edge of its range."""
    body = draw(st.binary(max_size=30))
    size = draw(st.just(b"%d" % len(body)) | st.just(b"0%d" % len(body)))
    cas = draw(st.just(b"7") | _number)
    flags = draw(st.sampled_from([b"77", b"77", b"77", b"770", b"7", b"077"]))
    ttl = draw(st.just(b"60") | st.just(b"-1") | _number)
    mark = draw(st.sampled_from([b"", b"", b"", b" W", b" Z", b" X", b" "]))
    return b"VA %b c%b f%b t%b%b\r\n%b\r\n" % (size, cas, flags, ttl, mark, body)


@st.composite
def _cut(draw: st.DrawFn) -> bytes:
    data = draw(_plain_hit())
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(max_size=1)) + data[at + draw(st.integers(0, 1)) :]


HITS = st.lists(_plain_hit() | _cut() | REPLIES, min_size=1, max_size=4).map(b"".join)


@given(data=HITS, count=st.integers(1, 3))
@example(data=b"VA 1 c99999999999999999999 f77 t60\r\nx\r\n", count=1)
@example(data=b"VA 1 c9999999999999999999 f77 t4294967296\r\nx\r\n", count=1)
@example(data=b"VA 99999999999 c1 f77 t60\r\nx\r\n", count=1)
@example(data=b"VA 1 c1 f77 t60\r\nx\r\nVA 1 c1 f77 t60\r\ny\r\n", count=1)
def test_wires_agree_on_hits(data: bytes, count: int) -> None:
    """What is read the short way and what is read by the reader of all replies is the same, errors included."""
    for call, arguments in (("hit", (77,)), ("hits", (count, 77)), ("exchange", (count,))):
        found = [answered(twin, call, data, *arguments) for twin in TWINS]
        assert found.count(found[0]) == len(found)


RECORD = b"VA 6\r\nrecord\r\n"


@st.composite
def _record_and_more(draw: st.DrawFn) -> bytes:
    """The record's reply, as expected or not quite, and what may be behind it."""
    at = draw(st.integers(0, len(RECORD)))
    cut = RECORD[:at] + draw(st.binary(max_size=1)) + RECORD[at + draw(st.integers(0, 1)) :]
    return draw(st.sampled_from([RECORD, RECORD, cut]) | REPLIES) + draw(HITS)


@given(data=_record_and_more(), count=st.integers(1, 3))
@example(data=b"EN\r\nVA 1 c1 f77 t60\r\nx\r\n", count=1)
@example(data=b"VA 6 c1 f77 t60\r\nrecord\r\nVA 1 c1 f77 t60\r\nx\r\n", count=1)
@example(data=RECORD[:-1], count=1)
def test_wires_agree_on_guarded_hits(data: bytes, count: int) -> None:
    """Only a record that is as expected, byte for byte, is taken for it, and what is behind it is read as ever."""
    found = [answered(twin, "guarded_hits", data, count, 77, RECORD) for twin in TWINS]
    assert found.count(found[0]) == len(found)
    expected = [answered(twin, "hits", data.removeprefix(RECORD), count, 77) for twin in TWINS[:1]]
    if data.startswith(RECORD) and expected[0][0] == "returned":
        assert found[0] == ("returned", [None, *expected[0][1]])
    elif found[0][0] == "returned":
        assert data.startswith(RECORD) == (found[0][1][0] is None)


class _Rest:
    """Takes what a reader found to be no plain hit."""

    def __init__(self) -> None:
        self.told: Any = None

    def __call__(self, keys: Any, connection: Any, found: Any, epoch: int, known: Any) -> list[Any]:
        error = isinstance(found, Exception)
        self.told = (keys[0], (type(found), str(found)) if error else shown(found), epoch, known is not None)
        return [None] * len(keys)


@given(data=_record_and_more())
@example(data=RECORD + b"VA 1 c1 f77 t60\r\nx\r\n")
@example(data=RECORD + b"VA 0 c7 f77 t0\r\n\r\n")
def test_guarded_readers_agree(data: bytes) -> None:
    """A guarded reader of either kind gives the same values, and leaves the same to the long way."""
    results = []
    for twin in USABLE:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            pool: Pool[Any] = Pool(lambda twin=twin, ours=ours: Connection(twin.Wire(ours, 20.0), ours), 1, 1)  # type: ignore[misc]
            pool.release(pool.acquire())
            trust, known, rest = _accel.TrustState(), _accel.RecordState(), _Rest()
            known.head, known.prefix, known.reply, known.marks = b"h", b"p", RECORD, frozenset([b"m"])
            trust.known = known
            read = twin.NodeReader(pool, Probe(NodeStats()), EPOCH, b"", 77, rest, trust, b"m")
            found = read(b"k")
            results.append((found, None if rest.told is None else (*rest.told[:2], rest.told[3])))
    assert results.count(results[0]) == len(results)


@each_twin
@given(data=REPLIES | st.integers(2040, 2055).map(line))
@example(data=line(LINE_LIMIT))
@example(data=b"VA 3 c5 f1 t-1 W\r\nabc\r\n")
def test_prefixes(twin: Any, data: bytes) -> None:
    """However a reply is cut, the reader waits for the rest; more bytes never change what it has read."""
    whole = read(twin, data, 0)
    for end in range(len(data)):
        part = read(twin, data[:end], 0)
        if whole is None:
            assert part is None
        elif whole[0] == "raised":
            assert part is None or part[0] == "raised"
        else:
            assert part == (whole if end >= whole[-1] else None)


@each_twin
@given(before=st.binary(max_size=20), data=REPLIES)
def test_start(twin: Any, before: bytes, data: bytes) -> None:
    """What stands before `start` does not matter."""
    alone, shifted = read(twin, data, 0), read(twin, before + data, len(before))
    if alone is None or alone[0] == "raised":
        assert shifted == alone
    else:
        assert shifted == (*alone[:-1], alone[-1] + len(before))


@each_twin
def test_every_flag(twin: Any) -> None:
    """Each flag that a lease-get asks for lands in its field."""
    data = b"VA 3 c77 f4026531841 t-1 O12 W X Z\r\nabc\r\nHD\r\n"
    expected = (b"VA", b"abc", 4026531841, 77, -1, 12, True, True, True, len(data) - 4)
    assert read(twin, data, 0) == expected


@each_twin
def test_fields_that_were_not_sent(twin: Any) -> None:
    """A bare reply has no value, no expiry, no opaque and no mark."""
    assert read(twin, b"HD\r\n", 0) == (b"HD", None, 0, 0, -1, -1, False, False, False, 4)


@each_twin
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"VALUE k 0 1\r\n", "unexpected reply b'VALUE k 0 1'"),
        (b"\r\n", "unexpected reply b''"),
        (b"HD q\r\n", "unexpected flag b'q' in a reply"),
        (b"HD W1\r\n", "unexpected flag b'W1' in a reply"),
        (b"HD \r\n", "unexpected flag b'' in a reply"),
        (b"HD f4294967296\r\n", "expected a number below 4294967296, got b'4294967296'"),
        (b"HD t-2\r\n", "expected a number below 4294967296, got b'-2'"),
        (b"VA -1\r\n", "expected a number below 1073741825, got b'-1'"),
        (b"VA 1073741825\r\n", "expected a number below 1073741825"),
        (b"VA 1\r\nab\r\n", "value is not followed by CRLF"),
        (b"VA 1\r\na\r\r", "value is not followed by CRLF"),
        (b"VA 1\r\na\n\n", "value is not followed by CRLF"),
        (b"x" * (LINE_LIMIT + 2), "reply line is longer than the protocol allows"),
    ],
)
def test_violations(twin: Any, data: bytes, message: str) -> None:
    """What the protocol does not allow is a ProtocolError that quotes it."""
    with pytest.raises(ProtocolError, match=message):
        twin.parse_reply(data, 0)


@each_twin
@pytest.mark.parametrize("start", [-1, 5, 2**40, -(2**40)])
def test_start_outside_the_data(twin: Any, start: int) -> None:
    """A start before or behind the data is refused, not read."""
    with pytest.raises(ValueError, match=r"^start is outside the data$"):
        twin.parse_reply(b"HD\r\n", start)
