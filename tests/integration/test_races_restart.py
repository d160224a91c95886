"""Races that a restarted server opens: its CAS numbers start anew, so an old token can name a new lease."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from leasecache import AsyncCache, Cache, NodeError
from leasecache.lab import MemcachedServer, RedisServer, wait_until
from leasecache.lease import Fill, Hit, Lease, Refused, Stored, Wait
from leasecache.stores.memcached import MemcachedNode
from tests.fix_races import FLAGS, KEY, cas, won


def won_again(node: MemcachedNode, key: bytes = KEY) -> Lease | None:
    """Ask for a lease of a server that is being restarted; None while it does not answer."""
    try:
        return won(node, key)
    except NodeError:
        return None


def restart(server: MemcachedServer) -> None:
    """End a server at once and start it empty."""
    server.kill()
    server.start()


@pytest.fixture
def twice_won(counting_memcached: MemcachedServer) -> Iterator[tuple[MemcachedNode, Lease, MemcachedNode, Lease]]:
    """A process whose lease is from before a restart, and another whose lease of the same key has the same number."""
    early, late = (MemcachedNode(counting_memcached.address) for _ in range(2))
    before = won(early)
    restart(counting_memcached)
    after = wait_until(lambda: won_again(late), 60, "memcached to answer again")
    assert cas(before) == cas(after)
    wait_until(lambda: _answers(early), 60, "the first process to be connected again")
    yield early, before, late, after
    early.close()
    late.close()


def _answers(node: MemcachedNode) -> bool:
    try:
        return isinstance(node.lease_get(KEY, 10), Wait)
    except NodeError:
        return False


def test_load_from_before_a_restart_is_not_stored(twice_won: tuple[MemcachedNode, Lease, MemcachedNode, Lease]) -> None:
    """memcached restarted between lease-get and lease-set; guard: only an older connection may present the token."""
    early, before, late, after = twice_won
    assert isinstance(early.lease_set(before, FLAGS, b"stale", 60), Refused)
    assert late.lease_set(after, FLAGS, b"value", 60) == Stored()
    answer = early.lease_get(KEY, 10)
    assert isinstance(answer, Hit)
    assert answer.value == b"value"


def test_release_from_before_a_restart_leaves_the_new_lease(
    twice_won: tuple[MemcachedNode, Lease, MemcachedNode, Lease],
) -> None:
    """A loader that fails after a restart gives back its own lease only; guard: the connection rule of release."""
    early, before, late, after = twice_won
    early.release(before)
    assert late.lease_set(after, FLAGS, b"value", 60) == Stored()


def test_theft_from_before_a_restart_leaves_the_new_lease(
    twice_won: tuple[MemcachedNode, Lease, MemcachedNode, Lease],
) -> None:
    """Who waited for a lease from before a restart robs nobody of the new one; guard: the connection rule of steal."""
    early, before, late, after = twice_won
    assert before.token is not None
    assert isinstance(early.steal(KEY, before.token, 10), Wait)
    assert late.lease_set(after, FLAGS, b"value", 60) == Stored()


def test_task_from_before_a_restart_does_not_store(counting_memcached: MemcachedServer) -> None:
    """The same over asyncio; guard: the shared connection must be older than the lease."""
    late = MemcachedNode(counting_memcached.address)

    async def scenario() -> None:
        async with AsyncCache.from_url(counting_memcached.url) as cache:
            before = await cache.lease_get(KEY)
            assert isinstance(before, Lease)
            restart(counting_memcached)
            after = wait_until(lambda: won_again(late), 60, "memcached to answer again")
            assert cas(before) == cas(after)
            while not isinstance(await _answered(cache), Wait):
                await asyncio.sleep(0.01)
            assert isinstance(await cache.lease_set(before, b"stale", 60), Refused)
            assert late.lease_set(after, FLAGS, b"value", 60) == Stored()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    late.close()


async def _answered(cache: AsyncCache) -> object:
    try:
        return await cache.lease_get(KEY)
    except NodeError:
        return None


def test_batch_with_leases_from_both_sides_of_a_restart(counting_memcached: MemcachedServer) -> None:
    """Of two leases in one batch of stores the old one is refused and the new one stored, whichever comes first."""
    for order in (1, -1):
        node = MemcachedNode(counting_memcached.address)
        old = won(node, b"old%d" % order)
        restart(counting_memcached)
        new = wait_until(lambda: won_again(node, b"new%d" % order), 60, "memcached to answer again")  # noqa: B023
        fills = [(old, FLAGS, b"stale", 60.0), (new, FLAGS, b"value", 60.0)][::order]
        outcomes = node.lease_set_many([Fill(*fill) for fill in fills])[::order]
        assert isinstance(outcomes[0], Refused)
        assert outcomes[1] == Stored()
        node.close()


def test_caller_after_a_restart_does_not_join_the_older_load(counting_memcached: MemcachedServer) -> None:
    """The number in the answer is that of this process's load, from before the restart and the invalidation.

    Guard: the connection that brought the answer must be older than the load's lease (`Flight.admits`).
    """
    rows = {1: "old"}
    began, go_on = threading.Event(), threading.Event()
    url = counting_memcached.url
    with Cache.from_url(url) as cache, Cache.from_url(url) as elsewhere:

        @cache.cached("row:{row_id}", ttl=60, wait_for=0.5)
        def get_row(row_id: int) -> str:
            value = rows[row_id]
            if value == "old":
                began.set()
                assert go_on.wait(60)
            return value

        seen: list[str] = []
        first = threading.Thread(target=lambda: seen.append(get_row(1)))
        first.start()
        assert began.wait(60)
        restart(counting_memcached)
        rows[1] = "new"
        wait_until(lambda: _invalidated(elsewhere, get_row.key(1)), 60, "the invalidation to be acknowledged")
        other = elsewhere.lease_get(get_row.key(1))  # has the number of the load that began before the restart
        assert isinstance(other, Lease)
        [loading] = cache.driver().local.flights._by_key[get_row.key(1)]
        assert loading.token is not None
        assert loading.token.cas == cas(other)
        wait_until(lambda: _waits(cache, get_row.key(1)), 60, "the node to be used again")
        timer = threading.Timer(0.2, go_on.set)  # before wait_for is over
        timer.start()
        assert get_row(1) == "new"
        timer.join()
        first.join()
        assert seen == ["old"]


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_idle_connections_that_a_restart_has_ended_cost_no_call(kind: str, request: pytest.FixtureRequest) -> None:
    """A connection found dead is not a node that is down: the first call after a restart asks over another one.

    Guard of the asynchronous one on Redis: an end of file that is there to be read is no reply out of turn.
    """
    server: MemcachedServer | RedisServer = request.getfixturevalue(kind)
    with Cache.from_url(server.url) as cache:
        assert isinstance(cache.lease_get(KEY), Lease)
        server.kill()
        server.start()
        assert isinstance(cache.lease_get(KEY), Lease)
    asyncio.run(_ask_after_a_restart(server))


async def _ask_after_a_restart(server: MemcachedServer | RedisServer) -> None:
    key = b"asynchronous"
    async with AsyncCache.from_url(server.url) as cache:
        assert isinstance(await cache.lease_get(key), Lease)
        server.kill()
        server.start()
        for _ in range(20):
            await asyncio.sleep(0.005)  # the loop takes in that the connection has ended
        assert isinstance(await cache.lease_get(key), Lease)


def _invalidated(cache: Cache, key: bytes) -> bool:
    try:
        cache.invalidate(key)
    except NodeError:
        return False
    return True


def _waits(cache: Cache, key: bytes) -> bool:
    try:
        return isinstance(cache.lease_get(key), Wait)
    except NodeError:
        return False
