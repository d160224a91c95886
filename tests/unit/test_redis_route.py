"""Which node of a Redis cluster gets a command, without any node."""

from typing import Any

from leasecache.errors import NodeError
from leasecache.stores.redis_leases import Exchange, Reply
from leasecache.stores.redis_route import SURVEYS, Hop, Slots, Survey, route
from leasecache.stores.redis_wire import Command

SEED = "seed:6379"
EVERYTHING = (0, 16383, "owner", 6379)  # one primary has all slots
ASKED = Exchange([Command(b"key", (b"GET", b"key"), bytes)])


def arrived(hop: Any) -> None:
    """Check that a journey goes to the owner of the key."""
    assert isinstance(hop, Hop)
    assert hop.node == "owner:6379"


def ended(journey: Any, replies: Any) -> Any:
    """Return the only reply of a journey whose only hop got `replies`."""
    try:
        journey.send([replies])
    except StopIteration as stop:
        return stop.value[0]
    raise AssertionError("the journey goes on")


def test_callers_who_come_during_the_first_survey_make_their_own() -> None:
    """Nobody may be told that a slot has no owner because another thread is asking for it; guard: `_failed`."""
    slots = Slots([SEED])
    first, second = route(ASKED, slots), route(ASKED, slots)
    assert list(next(first)) == [Survey(SEED)]
    assert list(next(second)) == [Survey(SEED)]
    for journey in (first, second):
        [hop] = journey.send([[EVERYTHING]])
        arrived(hop)
        reply = Reply(b"value", 1, 1, "owner:6379")
        assert ended(journey, [reply]) == reply
    [hop] = next(route(ASKED, slots))
    arrived(hop)


def test_first_surveys_do_not_exhaust_connections() -> None:
    """Each has a connection to itself, so a crowd makes SURVEYS of them at once; guard: the count in `Slots.survey`."""
    slots = Slots([SEED])
    journeys = [route(ASKED, slots) for _ in range(SURVEYS + 1)]
    asked = [list(next(journey)) for journey in journeys]
    assert asked == [[Survey(SEED)]] * SURVEYS + [[]]
    for journey in journeys[:SURVEYS]:
        journey.close()
    assert list(next(route(ASKED, slots))) == [Survey(SEED)]


def test_a_survey_that_nobody_answered_is_not_repeated_at_once() -> None:
    """A cluster that is gone costs one attempt per SURVEY_EVERY; guard: the check of that time in `Slots.survey`."""
    slots = Slots([SEED])
    first = route(ASKED, slots)
    assert list(next(first)) == [Survey(SEED)]
    assert not first.send([NodeError("refused")])
    assert not next(route(ASKED, slots))
