"""What the gate holds back: order, positions, several transactions in one place."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from leasecache.invalidation.gate import Answer, View
from leasecache.invalidation.held import Held
from leasecache.invalidation.stream import Touched, Transaction

Make = Callable[[int], View]


def transaction(end_lsn: int, *xids: int) -> Transaction:
    """Return a transaction with one key, named after its end."""
    touched = Touched()
    touched.touch(b"%d" % end_lsn, 0.0)
    return Transaction(xids=xids or (end_lsn,), end_lsn=end_lsn, committed_at=0.0, touched=touched)


def replayed(*positions: int) -> View:
    """Return what standbys show that have replayed so far."""
    return View(tuple(Answer(True, 0, frozenset(), position) for position in positions))


def running(*xids: int) -> View:
    """Return what a primary shows on which these are in progress."""
    return View((Answer(False, 1000, frozenset(xids)),))


def released(held: Held, view: View, places: int = 100) -> list[int]:
    """Return the ends of the transactions that a view lets go."""
    return [each.end_lsn for each, _ in held.release(view, places)]


def test_standbys_release_in_the_order_of_the_log() -> None:
    """With standbys, transactions go up to the least position replayed, and W with them."""
    held = Held()
    for end in (100, 200, 300):
        held.add(transaction(end), float(end))
    assert (released(held, replayed(50, 400)), held.settle()) == ([], None)
    assert (released(held, replayed(250, 400)), held.settle()) == ([100, 200], 200)
    assert (held.since, held.transactions, held.keys, len(held)) == (300.0, 1, 1, 1)
    assert (released(held, replayed(300, 300)), held.settle()) == ([300], 300)
    assert (held.since, held.transactions, held.keys, len(held)) == (None, 0, 0, 0)


def test_on_a_primary_a_later_one_may_go_first() -> None:
    """Keys of a visible transaction go; its position waits for those before it."""
    held = Held()
    held.add(transaction(100, 7), 0.0)
    held.add(transaction(200, 8), 0.0)
    assert (released(held, running(7)), held.settle()) == ([200], None)
    assert (released(held, running()), held.settle()) == ([100], 200)


def test_positions_wait_for_what_is_before_them() -> None:
    """A position without a transaction passes with the last transaction before it; of several the last one counts."""
    held = Held()
    held.reach(10, 0.0)
    assert held.settle() == 10
    held.add(transaction(100), 0.0)
    held.reach(110, 0.0)
    held.reach(120, 0.0)
    assert (len(held), held.settle()) == (2, None)
    assert (released(held, replayed(100)), held.settle()) == ([100], 120)


def test_what_came_after_the_question_stays() -> None:
    """An answer counts for what had been received when the question was put. Guard: the number of places."""
    held = Held()
    held.add(transaction(100), 0.0)
    held.add(transaction(200), 0.0)
    assert (released(held, replayed(500), places=1), held.settle()) == ([100], 100)
    assert released(held, replayed(500), places=0) == []


def test_several_at_once_go_whenever_one_of_them_is_visible() -> None:
    """Nobody knows whose keys are whose: they go with each that becomes visible, and W waits for the last."""
    held = Held()
    held.add(transaction(300, 7, 8, 9), 0.0)
    assert released(held, running(7, 8, 9)) == []
    assert (released(held, running(7, 9)), held.settle()) == ([300], None)
    assert (released(held, running(7, 9)), held.settle()) == ([], None)
    assert (released(held, running(9)), held.settle()) == ([300], None)
    assert (released(held, running()), held.settle(), len(held)) == ([300], 300, 0)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=30),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 40)), max_size=20),
)
def test_w_never_passes_what_is_held(steps: list[tuple[int, bool]], views: list[tuple[int, int]]) -> None:
    """Whatever comes and is shown: W passes no transaction that has not gone, and each goes once."""
    held, position, ends = Held(), 0, []
    for step, carries in steps:
        position += step
        if carries:
            held.add(transaction(position), 0.0)
            ends.append(position)
        else:
            held.reach(position, 0.0)
    gone: list[int] = []
    for replay, places in [*views, (position, len(held))]:
        gone += released(held, replayed(replay), places)
        w = held.settle() or 0
        assert [end for end in ends if end <= w] == [end for end in ends if end <= w and end in gone]
    assert gone == ends
    assert len(held) == 0
