"""Guarded lease-gets without a network: asked again while bumps cut across, and not for ever."""

from collections.abc import Sequence
from typing import Any

import pytest

from leasecache._accel import parse_reply
from leasecache.errors import GuardError, NodeError, NodeTimeout
from leasecache.guard import Record, ring_mark
from leasecache.lease import Ask, Hit, Lease
from leasecache.stores import meta
from leasecache.stores.guarding import GuardedBatch
from leasecache.stores.trust import ATTEMPTS, Trust

RING, MARK, OTHER = ring_mark(["test"]), b"0123456789ab", b"ba9876543210"
HIT, WON, GONE = b"VA 1 c7 f9 t60\r\nx\r\n", b"VA 0 c8 f0 t10 W\r\n\r\n", b"EN\r\n"
ASKS = [Ask(b"a", 10, 0, MARK), Ask(b"b", 10, 0, MARK)]


def record(generation: int, rules: Sequence[bytes] = (MARK,)) -> bytes:
    body = Record(generation=generation, tenure=1, rings=frozenset([RING]), rules=frozenset(rules)).to_bytes()
    return b"VA %d\r\n%b\r\n" % (len(body), body)


@pytest.fixture
def trust() -> Trust:
    """One that has read nothing yet."""
    return Trust("shop", RING, "test")


def answer(batch: GuardedBatch, data: bytes) -> list[Lease]:
    """Give a batch its replies; return what it gives back."""
    replies: list[Any] = []
    position = 0
    while position < len(data):
        parsed = parse_reply(data, position)
        assert parsed is not None
        reply, position = parsed
        replies.append(reply)
    assert len(replies) == batch.count
    return batch.take(batch.read(replies, 5, 3, None))


def asked(batch: GuardedBatch) -> bytes:
    assert batch.begin()
    return batch.request(bytes)


def test_the_record_is_read_alone_first(trust: Trust) -> None:
    """When no record is known, or the known one lacks a function, nothing is asked under a guess."""
    batch = GuardedBatch(trust, ASKS)
    assert asked(batch) == b"mg !guard:shop: v\r\n"
    assert answer(batch, record(7)) == []
    assert asked(batch).count(b"0000000000000007:") == 2
    assert answer(batch, record(7) + HIT + WON) == []
    assert not batch.begin()
    assert [type(found) for found in batch.answers] == [Hit, Lease]
    other = GuardedBatch(trust, [Ask(b"c", 10, 0, OTHER)])
    assert asked(other) == b"mg !guard:shop: v\r\n"
    answer(other, record(7))
    assert not other.begin()
    assert str(other.answers[0]).endswith("does not have this function's rules")


def test_a_batch_is_not_asked_for_ever(trust: Trust) -> None:
    """A generation that changes with every request ends as an error, and every lease goes back; guard: ATTEMPTS."""
    trust.read(Record(generation=1, tenure=1, rings=frozenset([RING]), rules=frozenset([MARK])).to_bytes())
    batch = GuardedBatch(trust, ASKS)
    requests = 0
    while batch.begin():
        requests += 1
        assert batch.request(bytes).count(b"%016x:" % requests) == 2
        back = answer(batch, record(requests + 1) + WON + WON)
        assert [(lease.key, lease.token and lease.token.generation) for lease in back] == [
            (b"a", requests),
            (b"b", requests),
        ]
    assert requests == ATTEMPTS + 1
    assert [type(found) for found in batch.answers] == [GuardError] * 2
    assert "has changed 3 times" in str(batch.answers[0])


def test_what_was_believed_outlives_a_later_error(trust: Trust) -> None:
    """When the node fails in the second request, who was answered by the first has his answer."""
    trust.read(Record(generation=7, tenure=1, rings=frozenset([RING]), rules=frozenset([MARK])).to_bytes())
    batch = GuardedBatch(trust, [*ASKS, Ask(b"c", 10, 0, OTHER), Ask(b"d", 10)])
    request = asked(batch)
    assert request.index(b"mg d ") < request.index(b"mg !guard") < request.index(b"7:a ") < request.index(b"7:b ")
    assert b":c " not in request
    assert answer(batch, WON + record(7, [MARK, OTHER]) + WON + HIT) == []
    assert [lease.key for lease in batch.won if isinstance(lease, Lease)] == [b"a", b"d"]
    assert asked(batch).endswith(b":c N10 c f t v\r\n")
    batch.fail(NodeTimeout("no answer"))
    assert not batch.begin()
    assert [type(found) for found in batch.answers] == [Lease, Hit, NodeTimeout, Lease]


def test_an_error_instead_of_the_record_is_the_nodes(trust: Trust) -> None:
    """What a server cannot say is no verdict."""
    batch = GuardedBatch(trust, ASKS)
    asked(batch)
    with pytest.raises(meta.Complaint, match="out of memory"):
        answer(batch, b"SERVER_ERROR out of memory\r\n")
    with pytest.raises(NodeError, match="unexpected reply HD"):
        answer(batch, b"HD\r\n")
    assert answer(batch, GONE) == []
    assert [error.missing for error in batch.answers if isinstance(error, GuardError)] == ["record"] * 2
