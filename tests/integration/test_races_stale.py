"""Races about stale values: their window, the one who refreshes them, and whoever only looks."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leasecache import Cache
from leasecache.lab import MemcachedServer, TcpProxy, wait_until
from leasecache.lease import Lease, Refused, Stale, Stored, Wait
from leasecache.stores import meta
from leasecache.stores.memcached import MemcachedNode
from tests.fix_races import FLAGS, KEY, cas, raw, won


def filled(node: MemcachedNode, ttl: float = 60) -> None:
    """Store a value."""
    assert node.lease_set(won(node), FLAGS, b"value", ttl) == Stored()


def window(server: MemcachedServer) -> int:
    """Return the s that the item has left."""
    seen = meta.debug(raw(server, b"me race\r\n").removesuffix(b"\r\n"))
    assert seen is not None
    return seen[0]


def test_late_old_winner_leaves_the_rightful_one_its_lease(each_node: MemcachedNode) -> None:
    """A refused store changes nothing; guard: no I beside C, with which the late value would be stored as stale."""
    filled(each_node)
    each_node.invalidate([KEY], 30)
    late = won(each_node)
    each_node.invalidate([KEY], 30)
    rightful = won(each_node)
    assert isinstance(each_node.lease_set(late, FLAGS, b"late", 60), Refused)
    answer = each_node.lease_get(KEY, 10)
    assert isinstance(answer, Stale)
    assert answer.value == b"value"
    assert each_node.lease_set(rightful, FLAGS, b"new", 60) == Stored()


def test_a_server_would_let_a_late_winner_in_as_stale(counting_memcached: MemcachedServer) -> None:
    """Why no store of ours has I: a lower CAS is stored as stale then, and the rightful winner is shut out."""
    raw(counting_memcached, b"ms race 1 T60 F1\r\na\r\nms race 1 T60 F1\r\nb\r\nmd race I T30\r\n")
    answer = raw(counting_memcached, b"mg race c v N10\r\n")
    assert answer == b"VA 1 c3 X W\r\nb\r\n"
    assert raw(counting_memcached, b"ms race 1 C1 I T60 F1\r\na\r\n") == b"HD\r\n"
    assert raw(counting_memcached, b"ms race 1 C3 T60 F1\r\nc\r\n") == b"EX\r\n"


def test_second_invalidation_does_not_begin_the_window_anew(
    each_memcached: MemcachedServer, each_node: MemcachedNode
) -> None:
    """The window counts from the first invalidation; guard: `me` first, and the minimum."""
    filled(each_node)
    each_node.invalidate([KEY], 20)
    wait_until(lambda: window(each_memcached) < 20, 60, "a second to pass")
    each_node.invalidate([KEY], 20)
    assert window(each_memcached) < 20


class Meddler(MemcachedNode):
    """A node whose invalidation is held up between its look at an item and its mark, `between` once."""

    between: Callable[[], object] | None = None

    def _exchange(self, build: Any, count: int, read: Any, context: Any) -> Any:
        result = super()._exchange(build, count, read, context)
        if read is meta.read_windows and self.between is not None:
            between, self.between = self.between, None
            between()
        return result


@pytest.fixture
def meddler(each_memcached: MemcachedServer) -> Iterator[Meddler]:
    """A process that is slow to invalidate."""
    opened = Meddler(each_memcached.address)
    yield opened
    opened.close()


def test_slow_invalidation_does_not_begin_the_window_of_a_quick_one_anew(
    each_memcached: MemcachedServer, each_node: MemcachedNode, meddler: Meddler
) -> None:
    """One process looks, another invalidates, time passes, the first one marks; guard: the CAS of what it looked at."""

    def between() -> None:
        each_node.invalidate([KEY], 20)
        wait_until(lambda: window(each_memcached) < 20, 60, "a second to pass")

    filled(each_node)
    meddler.between = between
    meddler.invalidate([KEY], 20)
    assert window(each_memcached) < 20


def test_clock_that_ticks_amid_an_invalidation_gives_no_second_more(
    each_memcached: MemcachedServer, each_node: MemcachedNode, meddler: Meddler
) -> None:
    """What an invalidated value had left when it was looked at is not set anew; guard: no T where nothing is cut."""
    filled(each_node)
    each_node.invalidate([KEY], 20)
    seen = window(each_memcached)
    meddler.between = lambda: wait_until(lambda: window(each_memcached) < seen - 1, 60, "the clock to tick")
    meddler.invalidate([KEY], 20)
    assert window(each_memcached) < seen


def test_value_stored_amid_an_invalidation_is_marked_too(each_node: MemcachedNode, meddler: Meddler) -> None:
    """What was loaded before an invalidation and stored between its look and its mark is stale, too.

    Guard: an item that has changed is looked at again.
    """
    filled(each_node)
    each_node.invalidate([KEY], 20)
    early = won(each_node)
    meddler.between = lambda: each_node.lease_set(early, FLAGS, b"old", 60)
    meddler.invalidate([KEY], 20)
    answer = won(each_node)
    assert (answer.value, answer.fresh) == (b"old", False)


def test_item_that_changes_all_the_time_is_deleted(each_node: MemcachedNode, meddler: Meddler) -> None:
    """An invalidation that never finds an item as it saw it drops it in the end; guard: the number of looks."""

    def again() -> None:
        each_node.invalidate([KEY], 300)
        meddler.between = again

    filled(each_node, ttl=1000)
    meddler.between = again
    meddler.invalidate([KEY], 300)
    assert won(each_node).value is None


def test_invalidation_does_not_lengthen_what_a_value_had_left(
    each_memcached: MemcachedServer, each_node: MemcachedNode
) -> None:
    """A value that would have gone in 20 s is not stale for longer than that; guard: the minimum with what is left."""
    filled(each_node, ttl=20)
    each_node.invalidate([KEY], 300)
    assert window(each_memcached) <= 20


def test_looking_does_not_take_the_win(each_memcached: MemcachedServer, each_node: MemcachedNode) -> None:
    """peek leaves the refresh of a stale value to a reader; guard: it asks by `me` and gets.

    The raw mg at the end shows that any mg takes the win, even one without N.
    """
    loads: list[int] = []
    with Cache.from_url(each_memcached.url, background=None) as cache:

        @cache.cached("{n}", ttl=60, stale_for=30)
        def number(n: int) -> int:
            loads.append(n)
            return n

        number(1)
        number.invalidate(1)
        seen = number.peek(1)
        assert seen is not None
        assert seen.state == "stale"
        assert number.lookup(1).state == "stale"
        assert loads == [1, 1]
        assert number.lookup(1).state == "fresh"
        number.invalidate(1)
        assert raw(each_memcached, b"mg 1 t\r\n").endswith(b" W\r\n")
        assert number.lookup(1).state == "stale"
        assert loads == [1, 1]


def test_lease_whose_answer_was_lost_is_not_won_again_by_the_same_process(
    counting_memcached: MemcachedServer,
) -> None:
    """A lease-get that is executed and not answered is a lost lease: nobody stores under it, and it can be stolen."""
    with TcpProxy(counting_memcached.port) as proxy:
        node = MemcachedNode(proxy.address, timeout=1, connect_timeout=30)
        wait_until(lambda: _answer(node, b"other"), 60, "the first connection")
        proxy.drop("replies")
        with pytest.raises(ConnectionError):
            node.lease_get(KEY, 60)
        proxy.flow()
        answer = wait_until(lambda: _answer(node), 60, "the node to be used again")
        assert isinstance(answer, Wait)
        assert answer.token is not None
        thief = node.steal(KEY, answer.token, 10)
        assert isinstance(thief, Lease)
        assert node.lease_set(thief, FLAGS, b"value", 60) == Stored()
        node.close()


def _answer(node: MemcachedNode, key: bytes = KEY) -> object:
    try:
        return node.lease_get(key, 60)
    except ConnectionError:
        return None


def test_dead_holder_of_a_stub_is_forgotten_after_lease_for(each_node: MemcachedNode) -> None:
    """A stub runs out lease_for after it was won, however often it is asked for; the late holder is refused."""
    dead = won(each_node, lease_for=1)
    heir = wait_until(lambda: _lease(each_node), 60, "the stub to run out")
    assert isinstance(each_node.lease_set(dead, FLAGS, b"late", 60), Refused)
    assert each_node.lease_set(heir, FLAGS, b"value", 60) == Stored()


def _lease(node: MemcachedNode) -> Lease | None:
    answer = node.lease_get(KEY, 60)
    return answer if isinstance(answer, Lease) else None


def test_dead_refresher_of_a_stale_value_keeps_it_until_it_is_robbed(
    each_memcached: MemcachedServer, each_node: MemcachedNode
) -> None:
    """A stale item has no clock that ends its lease; guard: steal, which leaves the window and shuts the dead out."""
    filled(each_node)
    each_node.invalidate([KEY], 30)
    dead = won(each_node, lease_for=1)
    wait_until(lambda: window(each_memcached) < 29, 60, "the lease to be over")
    loser = each_node.lease_get(KEY, 1)
    assert isinstance(loser, Stale)
    assert loser.token is not None
    before = window(each_memcached)
    thief = each_node.steal(KEY, loser.token, 1)
    assert isinstance(thief, Lease)
    assert cas(thief) != cas(dead)
    assert window(each_memcached) <= before
    assert isinstance(each_node.lease_set(dead, FLAGS, b"late", 60), Refused)
    assert each_node.lease_set(thief, FLAGS, b"value", 60) == Stored()


def test_robbed_holder_that_ends_late_stores_nothing(memcached: MemcachedServer) -> None:
    """A loader that is taken for dead gives its caller the value, uncached; what the thief stored stays.

    Guard: steal changes the item's number, so that the holder's token is void.
    """
    began, go_on = threading.Event(), threading.Event()
    versions = iter(["old", "new"])
    with Cache.from_url(memcached.url) as slow, Cache.from_url(memcached.url) as thief:

        def load(n: int) -> str:
            version = next(versions)
            if version == "old":
                began.set()
                assert go_on.wait(60)
            return version

        load.__annotations__ = {"n": int, "return": str}
        options = {"ttl": 60, "lease_for": 60, "wait_for": 60}
        get_slowly = slow.cached("{n}", **options)(load)  # type: ignore[arg-type]
        get: Any = thief.cached("{n}", **options)(load)  # type: ignore[arg-type]
        for _ in range(20):
            get._self_core._load_time.observe(0.005)  # so that a holder of a second is taken for dead
        entries = []
        holder = threading.Thread(target=lambda: entries.append(get_slowly.lookup(1)))
        holder.start()
        assert began.wait(60)
        assert get.lookup(1).value == "new"
        go_on.set()
        holder.join()
        assert [(entry.value, entry.state) for entry in entries] == [("old", "uncached")]
        assert get.lookup(1).value == "new"


def test_soft_invalidation_of_a_stub_voids_its_lease(each_node: MemcachedNode) -> None:
    """What is being loaded while the key has no value is refused after a soft invalidation, and can be won anew."""
    lease = won(each_node)
    each_node.invalidate([KEY], 30)
    assert isinstance(each_node.lease_set(lease, FLAGS, b"old", 60), Refused)
    again = won(each_node)
    assert again.value is None
    assert each_node.lease_set(again, FLAGS, b"new", 60) == Stored()
