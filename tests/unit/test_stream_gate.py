"""The gate's rule, and its choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.gate import View, choose, parse_view

EPOCH = 1 << 32


def view(next_xid: int, *in_progress: int) -> View:
    """Return what a primary sees."""
    return View(False, next_xid, frozenset(in_progress))


def test_a_finished_transaction_is_visible() -> None:
    """On a primary a transaction is visible when it is older than xmax and not in progress."""
    assert view(100, 90).shows(99)
    assert not view(100, 99).shows(99)


@pytest.mark.parametrize("xid", [100, 101, 5000])
def test_xmax_and_beyond_are_not_visible(xid: int) -> None:
    """A transaction at or beyond xmax is not in the list of those in progress, and still not visible."""
    assert not view(100).shows(xid)


@given(st.integers(3, 2**40), st.integers(1, 2**30))
def test_the_epoch_is_the_nearest(next_xid: int, age: int) -> None:
    """The 32 bits of Begin are compared with 64, across any number of wraparounds."""
    full = next_xid - age
    if full < 3:
        return
    assert view(next_xid).shows(full % EPOCH)
    assert not view(next_xid, full).shows(full % EPOCH)
    assert not view(next_xid).shows((next_xid + age) % EPOCH)


def test_wraparound_by_hand() -> None:
    """A transaction just before a wraparound is older than xmax just after it."""
    assert view(EPOCH + 5).shows(EPOCH - 1)
    assert not view(EPOCH + 5, EPOCH - 1).shows(EPOCH - 1)
    assert not view(EPOCH - 1).shows(3)


def test_a_standby_shows_what_it_sent() -> None:
    """What a standby has sent, it has replayed."""
    assert View(True, 0, frozenset()).shows(12345)


def test_the_answer() -> None:
    """The answer is read as Postgres prints it."""
    assert parse_view(b"f", b"90:100:90,95") == view(100, 90, 95)
    assert parse_view(b"t", b"100:100:") == View(True, 100, frozenset())


@pytest.mark.parametrize("text", [None, b"", b"1:2", b"1:2:,", b"1:x:", b"1:2:3,"])
def test_no_answer(text: bytes | None) -> None:
    """Anything else is a SourceError."""
    with pytest.raises(SourceError):
        parse_view(b"f", text)


def test_the_choice() -> None:
    """`auto` takes the gate of the server's role; a setting that the role contradicts is refused."""
    assert choose("auto", in_recovery=True)[0] == choose("standby", in_recovery=True)[0] == "standby"
    assert choose("auto", in_recovery=False)[0] == choose("snapshot", in_recovery=False)[0] == "snapshot"
    with pytest.raises(ConfigError, match="needs a primary"):
        choose("snapshot", in_recovery=True)
    with pytest.raises(ConfigError, match="needs a standby"):
        choose("standby", in_recovery=False)
