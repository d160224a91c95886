"""The gate's rule, and its choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.gate import Answer, View, choose, choose_for_reader, parse_answer

EPOCH = 1 << 32
FAR = 1 << 60  # a position that nobody has reached


def primary(next_xid: int, *in_progress: int) -> Answer:
    """Return what a primary answers."""
    return Answer(False, next_xid, frozenset(in_progress))


def standby(replayed: int | None) -> Answer:
    """Return what a standby answers."""
    return Answer(True, 0, frozenset(), replayed)


def test_a_finished_transaction_is_visible() -> None:
    """On a primary a transaction is visible when it is older than xmax and not in progress."""
    assert primary(100, 90).shows(99, FAR)
    assert not primary(100, 99).shows(99, FAR)


@pytest.mark.parametrize("xid", [100, 101, 5000])
def test_xmax_and_beyond_are_not_visible(xid: int) -> None:
    """A transaction at or beyond xmax is not in the list of those in progress, and still not visible."""
    assert not primary(100).shows(xid, 0)


@given(st.integers(3, 2**40), st.integers(1, 2**30))
def test_the_epoch_is_the_nearest(next_xid: int, age: int) -> None:
    """The 32 bits of Begin are compared with 64, across any number of wraparounds."""
    full = next_xid - age
    if full < 3:
        return
    assert primary(next_xid).shows(full % EPOCH, 0)
    assert not primary(next_xid, full).shows(full % EPOCH, 0)
    assert not primary(next_xid).shows((next_xid + age) % EPOCH, 0)


def test_wraparound_by_hand() -> None:
    """A transaction just before a wraparound is older than xmax just after it."""
    assert primary(EPOCH + 5).shows(EPOCH - 1, 0)
    assert not primary(EPOCH + 5, EPOCH - 1).shows(EPOCH - 1, 0)
    assert not primary(EPOCH - 1).shows(3, 0)


XIDS = st.integers(0, 20) | st.integers(EPOCH - 20, EPOCH - 1) | st.integers(2**31 - 9, 2**31 + 9)
ANSWERS = st.builds(
    Answer,
    st.booleans(),
    st.builds(lambda xid, epoch: xid + epoch * EPOCH, XIDS, st.integers(0, 2)),
    st.frozensets(st.builds(lambda xid, epoch: xid + epoch * EPOCH, XIDS, st.integers(0, 2)), max_size=4),
    st.none() | st.integers(0, 3),
)


@given(st.lists(ANSWERS, min_size=1, max_size=3), st.lists(XIDS, max_size=5))
def test_many_are_judged_as_each(answers: list[Answer], xids: list[int]) -> None:
    """Guard: the exact way behind the fast one. Many transactions at once are shown as each of them is, wherever xids
    wrap around."""
    view = View(tuple(answers))
    assert view.hides(tuple(xids), 2) == tuple(xid for xid in xids if not view.shows(xid, 2))


def test_a_standby_shows_what_it_has_replayed() -> None:
    """On a standby the position counts, whatever the xid; one that has replayed nothing yet shows nothing."""
    assert standby(100).shows(12345, 100)
    assert not standby(99).shows(12345, 100)
    assert not standby(None).shows(12345, 0)


def test_a_promoted_standby_is_judged_by_xids() -> None:
    """A primary may still say how far it had replayed; that counts no more. Guard: no positions on a primary."""
    assert not Answer(False, 100, frozenset({99}), FAR).shows(99, 0)
    assert Answer(False, 100, frozenset(), 5).shows(99, FAR)


def test_what_was_shown_before() -> None:
    """A standby that came back shows what was shown before once it has replayed it; a primary keeps what it showed."""
    assert standby(100).reaches(100)
    assert not standby(99).reaches(100)
    assert not standby(None).reaches(0)
    assert primary(5).reaches(FAR)


def test_the_least_reader_counts() -> None:
    """A view shows what each of its readers shows, each by its own rule."""
    view = View((primary(100, 90), standby(500), standby(400)))
    assert view.shows(99, 400)
    assert not view.shows(99, 450)
    assert not view.shows(90, 400)
    assert view.reaches(400)
    assert not view.reaches(401)


def test_the_answer() -> None:
    """The answer is read as Postgres prints it."""
    assert parse_answer(b"f", b"90:100:90,95", None) == primary(100, 90, 95)
    assert parse_answer(b"t", b"100:100:", b"1/A0") == Answer(True, 100, frozenset(), (1 << 32) + 0xA0)


@pytest.mark.parametrize("text", [None, b"", b"1:2", b"1:2:,", b"1:x:", b"1:2:3,"])
def test_no_snapshot(text: bytes | None) -> None:
    """Anything else than a snapshot is a SourceError."""
    with pytest.raises(SourceError):
        parse_answer(b"f", text, None)


@pytest.mark.parametrize("text", [b"", b"1", b"x/0", b"\xff/0", b"0/123456789"])
def test_no_position(text: bytes) -> None:
    """Anything else than a position is a SourceError."""
    with pytest.raises(SourceError):
        parse_answer(b"t", b"1:2:", text)


def test_the_choice() -> None:
    """`auto` takes the gate of the server's role; a setting that the role contradicts is refused."""
    assert choose("auto", in_recovery=True)[0] == choose("standby", in_recovery=True)[0] == "standby"
    assert choose("auto", in_recovery=False)[0] == choose("snapshot", in_recovery=False)[0] == "snapshot"
    with pytest.raises(ConfigError, match="needs a primary"):
        choose("snapshot", in_recovery=True)
    with pytest.raises(ConfigError, match="needs a standby"):
        choose("standby", in_recovery=False)


@pytest.mark.parametrize("in_recovery", [True, False])
def test_replay_does_not_read_from_the_source(in_recovery: bool) -> None:
    """Under `replay` the source has no gate; readers have one, by their role."""
    assert choose("replay", in_recovery=in_recovery)[0] == "none"
    assert choose_for_reader(in_recovery=in_recovery)[0] == ("replay" if in_recovery else "snapshot")
