"""The reader of Redis replies: whole, byte by byte, several at once, and nothing larger than anything asked for."""

import random
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, NoScriptError, ResponseError

from leasecache.errors import ProtocolError
from leasecache.stores.redis_reply import DEEPEST, INCOMPLETE, LINE, LONGEST, MOST, Replies

REPLIES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (b"+\r\n", b""),
    (b":0\r\n", 0),
    (b":-2\r\n", -2),
    (b":9223372036854775807\r\n", 2**63 - 1),
    (b"$-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"$7\r\na\r\nb\0\xffc\r\n", b"a\r\nb\0\xffc"),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*3\r\n$3\r\nHIT\r\n:5\r\n$-1\r\n", [b"HIT", 5, None]),
    (b"*2\r\n*2\r\n:1\r\n*0\r\n*1\r\n*1\r\n$1\r\nx\r\n", [[1, []], [[b"x"]]]),
]
GARBAGE = {
    "no kind": b"hello\r\n",
    "no line": b"\r\n",
    "http": b"HTTP/1.1 400 Bad Request\r\n",
    "a kind of another version": b"%1\r\n",
    "size of letters": b"$x\r\n",
    "no size": b"$\r\n",
    "sign alone": b"$-\r\n",
    "plus sign": b"$+5\r\n",
    "underscore": b"$1_0\r\n",
    "blank": b"$ 5\r\n",
    "size below nothing": b"$-2\r\n",
    "string longer than any": b"$%d\r\n" % (LONGEST + 1),
    "string of digits without end": b"$%s\r\n" % (b"9" * 5000),
    "list longer than any": b"*%d\r\n" % (MOST + 1),
    "list of the largest number": b"*2147483647\r\n",
    "list below nothing": b"*-2\r\n",
    "lists without end": b"*1\r\n" * (DEEPEST + 1),
    "number of letters": b":x\r\n",
    "number too large": b":99999999999999999999\r\n",
    "line without end": b"+" + b"x" * LINE,
    "string longer than announced": b"$1\r\nabc\r\n",
    "list of garbage": b"*2\r\n:1\r\nx\r\n",
}


def taken(replies: Replies, data: bytes, step: int) -> list[Any]:
    """Feed in steps; return what was complete."""
    found = []
    for i in range(0, len(data), step):
        replies.feed(data[i : i + step])
        while (reply := replies.take()) is not INCOMPLETE:
            found.append(reply)
    return found


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
def test_replies_in_any_pieces(step: int) -> None:
    """All replies come out in order, however the bytes are cut, and no byte is left."""
    replies = Replies()
    data = b"".join(written for written, _ in REPLIES)
    assert taken(replies, data, step) == [value for _, value in REPLIES]
    assert not replies.unread


@pytest.mark.parametrize(("written", "value"), REPLIES)
def test_trailing_bytes_stay(written: bytes, value: Any) -> None:
    """What follows a reply is unread until it is asked for."""
    replies = Replies()
    replies.feed(written + b"$3\r\nab")
    assert replies.take() == value
    assert replies.unread
    assert replies.take() is INCOMPLETE
    replies.feed(b"c\r\n")
    assert replies.take() == b"abc"


def test_large_string_in_pieces() -> None:
    """A string of many pieces is put together as it was."""
    body = random.Random(1).randbytes(1_000_000)
    assert taken(Replies(), b"*2\r\n$%d\r\n%b\r\n:1\r\n" % (len(body), body), 65536) == [[body, 1]]


def test_errors_are_those_of_the_driver() -> None:
    """An error reply is a value, also within a list, and of the class that redis-py has for it; LOADING is raised."""
    [error] = taken(Replies(), b"-NOSCRIPT No matching script\r\n", 100)
    assert isinstance(error, NoScriptError)
    [[_, error]] = taken(Replies(), b"*2\r\n:1\r\n-WRONGTYPE Operation\r\n", 3)
    assert isinstance(error, ResponseError)
    assert str(error) == "WRONGTYPE Operation"
    with pytest.raises(BusyLoadingError):
        taken(Replies(), b"-LOADING Redis is loading\r\n", 100)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("step", [1, 100_000])
def test_garbage_is_refused(garbage: bytes, step: int) -> None:
    """What is not of the protocol, or announces more than can be, is refused when it is announced."""
    with pytest.raises(ProtocolError):
        taken(Replies(), garbage, step)


def test_noise() -> None:
    """Whatever bytes come, in whatever pieces, there are replies, INCOMPLETE, or the two kinds of error."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    good = [written for written, _ in REPLIES]
    for _ in range(2000):
        data = bytearray(b"".join(rng.choices(good, k=3)))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.choice(b"$*:+-\r\n0159x\xff")
        whole, cut = (_outcome(bytes(data), step) for step in (len(data), rng.randrange(1, 9)))
        assert whole == cut, bytes(data)


def _outcome(data: bytes, step: int) -> Any:
    try:
        return repr(taken(Replies(), data, step))
    except ProtocolError:
        return ProtocolError
