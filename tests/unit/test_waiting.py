"""When waiters look, whom they wait for, and how long a holder is trusted: the parts that need no clock."""

import itertools
import random

from leasecache import NodeError
from leasecache.holders import Holders
from leasecache.lease import Ask, Hit, Lease, Stale, Token, Wait
from leasecache.loadtime import LoadTime
from leasecache.schedule import Schedule
from leasecache.task import Look

HELD = Token(7, 1, 1)
OTHER = Token(8, 1, 1)


def look(key: bytes = b"k", *, due: float = 0.0, again: float = 0.0) -> Look:
    return Look(Ask(key, 10), HELD, until=100.0, due=due, again=again)


def test_looks_that_are_nearly_due_go_with_the_one_that_is() -> None:
    """One batch holds every look that is due, and those whose pause is half over; the others wait for their turn."""
    schedule = Schedule()
    first, near, far = look(b"first", due=1.0), look(b"near", due=1.01), look(b"far", due=1.2)
    near.pause = far.pause = 0.05
    for one in (first, near, far):
        schedule.add(one)
    assert schedule.earliest() == 1.0
    assert schedule.due(0.999) == []
    assert schedule.due(1.0) == [first, near]


def test_a_look_is_settled_by_another_token_a_lease_or_an_error() -> None:
    """While answers name the holder's token the look goes on; anything else ends it."""
    for answer, settles in [
        (Wait(0.001, HELD), False),
        (Stale(b"v", 1, 5.0, HELD), False),
        (Hit(b"v", 1, 5.0, HELD), False),
        (Wait(0.001, OTHER), True),
        (Stale(b"v", 1, 5.0, OTHER), True),
        (Hit(b"v", 1, 5.0, OTHER), True),
        (Lease(b"k", OTHER), True),
        (Lease(b"k", None), True),
        (NodeError("gone"), True),
    ]:
        schedule, one = Schedule(), look()
        schedule.add(one)
        settled, unwanted = schedule.answer([one], [answer], 0.0)
        assert (settled == [one]) is settles
        assert one.settled is settles
        assert bool(schedule) is not settles
        assert unwanted == []


def test_a_lease_for_a_look_that_was_given_up_is_returned() -> None:
    """What nobody waits for any more must be given back, or the key would be nobody's until lease_for is over."""
    schedule, given_up = Schedule(), look()
    schedule.add(given_up)
    lease = Lease(b"k", OTHER)
    schedule.discard(given_up)
    assert schedule.answer([given_up], [lease], 0.0) == ([], [lease])
    assert schedule.answer([given_up], [Wait(0.001, OTHER)], 0.0) == ([], [])


def test_pauses_begin_at_a_millisecond_and_grow_to_fifty() -> None:
    """The second look comes when the load is expected to end; from there the pauses grow by half, jittered."""
    schedule, one = Schedule(), look(due=0.025, again=0.05)
    schedule.add(one)
    random.seed(1)
    times = [0.025]
    for _ in range(16):
        schedule.answer([one], [Wait(0.001, HELD)], times[-1])
        times.append(one.due)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert times[1] == 0.05
    assert 0.0008 <= pauses[1] <= 0.0012
    assert all(after > before * 0.9 for before, after in itertools.pairwise(pauses[1:8]))
    assert all(0.04 <= pause <= 0.06 for pause in pauses[-3:])


def test_patience_is_the_lease_until_enough_loads_are_known() -> None:
    """A holder has lease_for, and with twenty loads known three times their 99th percentile but a second at least."""
    load_time = LoadTime()
    for _ in range(19):
        load_time.observe(0.01)
    assert load_time.patience(10) == 10
    load_time.observe(0.01)
    assert load_time.patience(10) == 1
    assert load_time.patience(0.5) == 0.5
    for _ in range(3):
        load_time.observe(2.0)
    assert load_time.patience(10) == 6
    assert load_time.patience(5) == 5


def test_expected_load_time_follows_what_was_seen() -> None:
    """The first load is the estimate; each further one moves it by a fifth of the difference."""
    load_time = LoadTime()
    assert load_time.expected == 0
    load_time.observe(1.0)
    assert load_time.expected == 1.0
    load_time.observe(2.0)
    assert abs(load_time.expected - 1.2) < 1e-9


def test_a_holder_has_its_time_from_when_it_was_first_seen() -> None:
    """Seeing the same lease again does not give its holder more time."""
    holders = Holders()
    assert holders.deadline(b"k", HELD, 2.0, 10.0, now=100.0) == 102.0
    assert holders.deadline(b"k", HELD, 2.0, 10.0, now=101.5) == 102.0


def test_each_theft_doubles_the_time_of_the_next_holder() -> None:
    """A holder that follows one whose time was over gets twice as long, up to eight leases; so a slow loader stores."""
    holders, now = Holders(), 0.0
    given = []
    for cas in range(10):
        deadline = holders.deadline(b"k", Token(cas, 1, 1), 1.0, 2.0, now)
        given.append(deadline - now)
        now = deadline
    assert given == [1, 2, 4, 8, 16, 16, 16, 16, 16, 16]


def test_who_outlasts_a_holder_is_granted_twice_its_time() -> None:
    """The lease of the next one lives twice as long, up to eight times lease_for and 30 days, and a tick longer."""
    holders, now = Holders(), 0.0
    granted = []
    for cas in range(6):
        now = holders.deadline(b"k", Token(cas, 1, 1), 2.0, 2.0, now)
        granted.append(holders.grant(b"k", 2.0))
    assert granted == [5, 9, 17, 17, 17, 17]
    assert holders.grant(b"unknown", 2.0) == 5
    assert holders.grant(b"unknown", 29 * 86400) == 30 * 86400


def test_a_holder_that_gave_up_in_time_costs_its_successor_nothing() -> None:
    """A token that changed before its deadline was released or invalidated, not stolen."""
    holders = Holders()
    holders.deadline(b"k", HELD, 2.0, 10.0, now=0.0)
    assert holders.deadline(b"k", OTHER, 2.0, 10.0, now=0.9) == 2.9


def test_a_stored_value_ends_the_suspicion() -> None:
    """Once a value was stored the next holder of the key is trusted as any other."""
    holders = Holders()
    holders.deadline(b"k", HELD, 1.0, 10.0, now=0.0)
    holders.deadline(b"k", OTHER, 1.0, 10.0, now=5.0)
    holders.drop(b"k")
    assert holders.deadline(b"k", Token(9, 1, 1), 1.0, 10.0, now=6.0) == 7.0


def test_holders_are_forgotten_from_the_oldest_on() -> None:
    """Memory is bounded: of many thousands of keys the ones that were met last are known."""
    holders = Holders()
    for n in range(5000):
        holders.deadline(b"%d" % n, HELD, 1.0, 10.0, now=0.0)
    assert holders.deadline(b"4999", HELD, 1.0, 10.0, now=0.5) == 1.0
    assert holders.deadline(b"0", HELD, 1.0, 10.0, now=0.5) == 1.5


def test_a_lease_after_one_that_ran_out_under_its_load_is_too_short() -> None:
    """A load that was refused after most of its lease outlived it; one that was refused soon was invalidated."""
    holders = Holders()
    holders.outlived(b"k", HELD, 8.9, 10.0, now=20.0)
    assert not holders.is_too_short(b"k", OTHER, 10.0, now=20.0)
    holders.outlived(b"k", HELD, 9.1, 10.0, now=20.0)
    assert holders.is_too_short(b"k", OTHER, 10.0, now=20.0)
    assert not holders.is_too_short(b"other", OTHER, 10.0, now=20.0)
    holders.deadline(b"k", OTHER, 10.0, 10.0, now=20.0)
    assert not holders.is_too_short(b"k", OTHER, 10.0, now=20.0)
    holders.drop(b"k")
    assert not holders.is_too_short(b"k", HELD, 10.0, now=20.0)


def test_leases_of_others_do_not_make_ours_too_short() -> None:
    """That another process had a lease, for however long, says nothing of our loads; guard: `_Holder.outlived`."""
    holders, third = Holders(), Token(9, 1, 1)
    holders.deadline(b"k", HELD, 10.0, 10.0, now=0.0)
    assert not holders.is_too_short(b"k", OTHER, 10.0, now=20.0)
    holders.outlived(b"k", OTHER, 10.0, 10.0, now=20.0)
    assert holders.is_too_short(b"k", third, 10.0, now=20.0)
    holders.deadline(b"k", third, 10.0, 10.0, now=20.0)
    assert not holders.is_too_short(b"k", third, 10.0, now=50.0)
    assert holders.is_too_short(b"k", OTHER, 10.0, now=50.0)


def test_a_value_stored_in_between_makes_up_for_thefts() -> None:
    """Holders that each have stored were not robbed: a later end of the stale value tells; guard: `_is_later`."""
    holders = Holders()
    for n in range(5):
        since = 20.0 * n
        assert holders.deadline(b"k", Token(n, 1, 1), 10.0, 10.0, since, since + 60.0) == since + 10.0
    assert holders.deadline(b"k", Token(9, 1, 1), 10.0, 10.0, 90.0, 140.0) == 90.0 + 20.0
    assert holders.deadline(b"k", Token(10, 1, 1), 10.0, 10.0, 110.0, 141.9) == 110.0 + 40.0
