"""A `Cache` under a guard: what an application sees while a daemon vouches for its nodes, and while none does."""

import json
import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from leasecache import Cache, ConfigError, row
from leasecache.errors import GuardError
from leasecache.guard import Record, wire_key
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Hit, Lease
from leasecache.prometheus import LeasecacheCollector
from leasecache.rules import Rule
from leasecache.stores.memcached import MemcachedNode
from tests.callers import Loader
from tests.fix_guard import Voucher
from tests.fix_stores import use_twin

IDS = list(range(10))
MEDIA: Any = {"ttl": 600, "depends_on": row("media", media_id="id")}


class Shop:
    """Cached functions on two guarded nodes, and the database whose versions they cache."""

    def __init__(self, namespace: str, *addresses: str, **options: Any) -> None:
        self.cache = Cache.from_url(
            f"memcached://{','.join(addresses)}?namespace={namespace}", guard="daemon", **options
        )
        self.vouchers = [Voucher(MemcachedNode(address), addresses, namespace) for address in addresses]
        self.version = 1
        self.loader = Loader()

        @self.cache.cached("media:{media_id}", **MEDIA)
        def get_media(media_id: int) -> str:
            return self.load(media_id)

        @self.cache.cached_many("thumb:{media_id}", **MEDIA)
        def get_thumbs(media_ids: Sequence[int]) -> dict[int, str]:
            return {media_id: self.load(media_id) for media_id in media_ids}

        @self.cache.cached("stale:{media_id}", stale_for=60, **MEDIA)
        def get_stale(media_id: int) -> str:
            return self.load(media_id)

        @self.cache.cached("plain:{media_id}", ttl=600)
        def get_plain(media_id: int) -> str:
            return self.load(media_id)

        self.media, self.thumbs, self.stale, self.plain = get_media, get_thumbs, get_stale, get_plain

    def load(self, media_id: int) -> str:
        version = self.version
        return f"{self.loader(media_id)} v{version}"

    def vouch(self) -> None:
        for voucher in self.vouchers:
            voucher.vouch(self.cache.rules.rules)

    def withdraw(self) -> None:
        for voucher in self.vouchers:
            voucher.withdraw()

    def bump(self) -> None:
        for voucher in self.vouchers:
            voucher.bump()

    def loads(self, call: Any) -> tuple[Any, int]:
        """Return what a call gives, and how often it has loaded."""
        before = self.loader.calls
        return call(), self.loader.calls - before

    def close(self) -> None:
        self.cache.close()
        for voucher in self.vouchers:
            voucher.node.close()


@pytest.fixture(params=["c", "python"])
def shop(
    request: pytest.FixtureRequest,
    shared_memcached: MemcachedServer,
    recent_memcached: MemcachedServer,
    key: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    """A shop of the test's own on a memcached of either kind, by either twin."""
    use_twin(request.param, monkeypatch)
    shop = Shop(f"t{key.decode()[5:]}", shared_memcached.address, recent_memcached.address)
    yield shop
    shop.close()


def test_every_way_to_ask(shop: Shop) -> None:
    """What a record vouches for is served; without one all load, store nothing and count it, and errors are none."""
    values = {i: f"{i} v1" for i in IDS}
    for _ in range(2):
        assert shop.loads(lambda: shop.media.get_many(IDS)) == (values, 10)
        assert shop.loads(lambda: shop.thumbs(IDS)) == (values, 10)
        assert shop.loads(lambda: shop.media(1)) == ("1 v1", 1)
        assert [shop.media.lookup(1).state, shop.thumbs.lookup(1).state] == ["uncached"] * 2
        assert (shop.media.refresh(1), shop.thumbs.refresh([1])) == ("1 v1", {1: "1 v1"})
        assert (shop.media.peek(1), shop.thumbs.peek(1)) == (None, None)
        with pytest.raises(GuardError, match=r"no guard record.*is the daemon running\?"):
            shop.media.invalidate(1)
    told = {one.name.rpartition(".")[2]: one.unguarded for one in shop.cache.stats().functions}
    assert told == {"get_media": 24, "get_thumbs": 22, "get_stale": 0, "get_plain": 0}  # a refresh is no call
    assert [shop.loads(lambda: shop.plain(1)) for _ in range(2)] == [("1 v1", 1), ("1 v1", 0)]
    shop.plain.invalidate(1)  # stands under no generation
    assert shop.plain.peek(1) is None
    shop.vouch()
    for loads in (10, 0):
        assert shop.loads(lambda: shop.media.get_many(IDS)) == (values, loads)
        assert shop.loads(lambda: shop.thumbs(IDS)) == (values, loads)
    assert shop.loads(lambda: shop.media(1)) == ("1 v1", 0)
    assert [shop.media.lookup(1).state, shop.thumbs.lookup(1).state] == ["fresh"] * 2
    assert [entry and entry.value for entry in (shop.media.peek(1), shop.thumbs.peek(1))] == ["1 v1"] * 2
    shop.version = 2
    shop.media.invalidate(1)
    shop.thumbs.invalidate(1)
    assert (shop.media.get_many([1, 2]), shop.thumbs([1, 2])) == ({1: "1 v2", 2: "2 v1"}, {1: "1 v2", 2: "2 v1"})
    assert (shop.media.refresh(3), shop.thumbs.refresh([3])) == ("3 v2", {3: "3 v2"})
    assert shop.loads(lambda: shop.media(3)) == ("3 v2", 0)
    shop.withdraw()
    assert shop.loads(lambda: shop.media(3)) == ("3 v2", 1)
    for node in shop.cache.stats().nodes:
        assert (node.errors, node.up) == ({"timeout": 0, "broken": 0, "protocol": 0, "down": 0}, True)


def test_keys_are_logical(shop: Shop) -> None:
    """`key` gives the logical key, which decides on the node; there the value stands under the generation."""
    shop.vouch()
    for i in IDS:
        shop.media(i)
        key = shop.media.key(i)
        owner = shop.cache.driver().store.node_for(key)
        [voucher] = [voucher for voucher in shop.vouchers if voucher.node.name == owner.name]
        assert b":media:%d" % i in key
        assert owner.look(wire_key(voucher.generation, key)) is not None  # type: ignore[attr-defined]
        assert owner.look(key) is None  # type: ignore[attr-defined]


def test_stale_value_and_refresh_ahead(shop: Shop) -> None:
    """An invalidated value is served stale to who wants that, of this generation only; early refreshes work as ever."""

    @shop.cache.cached("early:{media_id}", refresh_ahead=599, **MEDIA)
    def get_early(media_id: int) -> str:
        return shop.load(media_id)

    shop.vouch()
    assert (shop.stale(1), get_early(1)) == ("1 v1", "1 v1")
    shop.version = 2
    shop.stale.invalidate(1)
    assert shop.stale.lookup(1).state == "stale"
    wait_until(lambda: shop.stale.lookup(1).value == "1 v2", 60, "the refresh of the stale value")
    assert get_early(1) == "1 v1"
    wait_until(lambda: get_early(1) == "1 v2", 60, "the early refresh")
    shop.stale.invalidate(1)
    shop.version = 3
    shop.bump()
    assert (shop.stale.lookup(1).state, shop.stale(1)) == ("loaded", "1 v3")


def test_fill_across_a_bump_is_never_served(shop: Shop) -> None:
    """A value that was read before a bump stays under that. Guard: the generation in its token."""
    shop.vouch()
    shop.loader.hold()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(shop.media.lookup, 1)
        assert shop.loader.began.wait(60)
        shop.version = 2
        shop.bump()
        shop.loader.may_end.set()
        entry = slow.result()
    assert (entry.value, entry.state) == ("1 v1", "loaded")
    assert shop.media(1) == "1 v2"


def test_record_bumped_between_lease_get_and_invalidation(shop: Shop) -> None:
    """An invalidation that meets another generation is repeated under that. Guard: the loop in `routed._invalidate`."""
    shop.vouch()
    shop.media(1)
    shop.bump()
    other = Shop(str(shop.cache.rules.namespace), *[voucher.node.name for voucher in shop.vouchers])
    assert other.media(1) == "1 v1"  # under the new generation, which the first cache has not seen
    other.version = 2
    shop.media.invalidate(1)
    assert other.media(1) == "1 v2"
    other.close()


def test_herd_without_a_record(shop: Shop) -> None:
    """While nobody vouches, callers of one key load one after the other per process, and share what they may."""
    shop.loader.hold()
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(shop.media, 1) for _ in range(20)]
        wait_until(lambda: shop.cache.stats().functions[0].unguarded == 20, 60, "all to have asked")
        shop.loader.may_end.set()
        assert {call.result() for call in calls} == {"1 v1"}
    assert shop.loader.calls <= 4, "the first, and one for those who came while it ran"


def test_log_and_figures(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """What the daemon's return will not mend is logged once per function, and nodes show their record's state."""
    caplog.set_level(logging.INFO, "leasecache")

    def states() -> list[str | None]:
        return [node.guard for node in shop.cache.stats().nodes]

    assert states() == ["unread", "unread"]
    shop.media.get_many(IDS)
    assert states() == ["absent", "absent"]
    assert sum("no guard record" in record.message for record in caplog.records) == 2  # each node's
    for voucher in shop.vouchers:
        voucher.vouch(marks=[b"0123456789ab"])
    for _ in range(3):
        shop.media.get_many(IDS)
        shop.thumbs(IDS)
    lacking = [record.message for record in caplog.records if "does not have this function's rules" in record.message]
    assert ["get_media (media:{media_id})" in lacking[0], "get_thumbs" in lacking[1], len(lacking)] == [True, True, 2]
    assert states() == ["fresh", "fresh"]
    for voucher in shop.vouchers:
        voucher.rings = frozenset([b"0" * 12])
        voucher.write()
    shop.media.get_many(IDS)
    shop.media.get_many(IDS)
    assert states() == ["foreign", "foreign"]
    assert sum("other nodes or weights" in record.message for record in caplog.records) == 1
    registry = CollectorRegistry()
    registry.register(LeasecacheCollector(shop.cache))
    names = {"cache": str(shop.cache.rules.namespace), "node": shop.vouchers[0].node.name}
    assert registry.get_sample_value("leasecache_node_guarded", names) == 0
    assert json.dumps(shop.cache.stats().to_json())


def test_clear(shop: Shop) -> None:
    """After `clear` no guarded value from before is served, and records keep what is left of their time."""
    with pytest.raises(GuardError):
        shop.cache.clear()
    shop.vouch()
    shop.media.get_many(IDS)
    shop.plain(1)
    records = [Record.from_bytes(voucher.node.look(voucher.key).value) for voucher in shop.vouchers]  # type: ignore[union-attr]
    shop.version = 2
    shop.cache.clear()
    assert shop.media.get_many(IDS) == {i: f"{i} v2" for i in IDS}
    assert shop.plain(1) == "1 v1"
    for voucher, before in zip(shop.vouchers, records, strict=True):
        found = voucher.node.look(voucher.key)
        assert found is not None
        assert found.expires_in is not None
        assert 50 < found.expires_in <= 60
        after = Record.from_bytes(found.value)
        assert before is not None
        assert after is not None
        assert after.generation != before.generation
        assert (after.tenure, after.run, after.rings, after.rules) == (
            before.tenure,
            before.run,
            before.rings,
            before.rules,
        )
    shop.vouchers[0].withdraw()
    with pytest.raises(GuardError, match=shop.vouchers[0].node.name):
        shop.cache.clear()
    assert isinstance(shop.vouchers[0].node.lease_get(shop.vouchers[0].key, 1), Lease), "it left no stub behind"


def test_clear_never_stretches_a_record(shop: Shop) -> None:
    """A record that nobody renews runs out however often it is cleared. Guard: the second that `bumped` takes off."""
    shop.vouch()
    for voucher in shop.vouchers:
        voucher.write(ttl=6)
    began = time.monotonic()
    cleared = []

    def is_gone() -> bool:
        asked = time.monotonic()
        try:
            shop.cache.clear()
        except GuardError:
            return True
        cleared.append(asked - began)
        return False

    wait_until(is_gone, 60, "the record to run out")
    assert cleared
    assert max(cleared) < 6


def test_clear_against_the_daemon(shop: Shop) -> None:
    """`clear` and a daemon that renews at the same time never undo each other. Guard: both store by CAS."""
    shop.vouch()
    voucher = shop.vouchers[0]
    store: Any = shop.cache.driver().store
    node = next(node for node in store.nodes if node.name == voucher.node.name)
    found = voucher.node.lease_get(voucher.key, 60)
    assert isinstance(found, Hit)
    shop.cache.clear()
    stale = Record.from_bytes(found.value)
    assert stale is not None
    outcome = voucher.node.lease_set(Lease(voucher.key, found.token), 1, stale.to_bytes(), 60)
    assert "Refused" in repr(outcome)
    meddled: list[int] = []
    lease_set = node.lease_set

    def after_a_renewal(*args: Any) -> Any:
        if not meddled:
            meddled.append(voucher.bump())
        return lease_set(*args)

    node.lease_set = after_a_renewal
    shop.cache.clear()
    after = Record.from_bytes(voucher.node.look(voucher.key).value)  # type: ignore[union-attr]
    assert after is not None
    assert after.generation not in meddled


@pytest.mark.parametrize(("url", "loads"), [("memory://", 2), ("null://", 3)])
def test_no_guard_in_this_process(url: str, loads: int) -> None:
    """A store in this process takes guard="daemon", needs no record, and is empty after clear()."""
    loader = Loader()
    with Cache.from_url(url, guard="daemon") as cache:

        @cache.cached("media:{media_id}", **MEDIA)
        def get_media(media_id: int) -> int:
            return int(loader(media_id))

        assert [get_media(1), get_media(1)] == [1, 1]
        cache.clear()
        assert get_media(1) == 1
        get_media.invalidate(1)
        assert [node.guard for node in cache.stats().nodes] == [None]
    assert loader.calls == loads


def test_clear_without_a_guard(shared_memcached: MemcachedServer) -> None:
    """What stands on the network without a generation cannot be cleared, and the error says what can be done."""
    with (
        Cache.from_url(f"memcached://{shared_memcached.address}", guard="none") as cache,
        pytest.raises(ConfigError, match=r"guard='daemon'.*flush the servers"),
    ):
        cache.clear()


def test_override(shop: Shop) -> None:
    """Under `override` nothing is guarded unless its URL says so, and afterwards everything is again."""
    with shop.cache.override("memory://"):
        assert [shop.loads(lambda: shop.media(1)) for _ in range(2)] == [("1 v1", 1), ("1 v1", 0)]
        shop.cache.clear()
        assert shop.loads(lambda: shop.media(1)) == ("1 v1", 1)
    assert [shop.loads(lambda: shop.media(1)) for _ in range(2)] == [("1 v1", 1), ("1 v1", 1)]
    url = f"memcached://{shop.vouchers[0].node.name}?namespace=elsewhere"
    with shop.cache.override(f"{url}{shop.cache.rules.namespace}"):
        assert [shop.loads(lambda: shop.media(1))[1] for _ in range(2)] == [1, 0]
    with shop.cache.override(f"{url}&guard=daemon"):
        assert [shop.loads(lambda: shop.media(1))[1] for _ in range(2)] == [1, 1]


def test_declaring_and_announcing(shop: Shop) -> None:
    """depends_on under a guard warns of nothing, and commit messages are made: the daemon hears them."""

    @shop.cache.cached("other:{media_id}", **MEDIA)  # a warning would fail here
    def get_other(media_id: int) -> str:
        return shop.load(media_id)

    message = get_other.commit_message(1)
    assert get_other.key(1).decode() in str(message)
    assert isinstance(shop.cache.rules.rules[0], Rule)


def test_low_level_keys(shop: Shop) -> None:
    """The low-level calls deal in keys without a generation; an invalidation reaches those with one, too."""
    shop.vouch()
    shop.media(1)
    key = shop.media.key(1)
    lease = shop.cache.lease_get(key)
    assert isinstance(lease, Lease)
    shop.cache.lease_set(lease, b"mine", 60)
    shop.version = 2
    shop.cache.invalidate(key, b"k" * 250)  # which under a generation would be longer than the server takes
    assert isinstance(shop.cache.lease_get(key), Lease)
    assert shop.media(1) == "1 v2"


class Ledger:
    """What callers have been told, held against when generations were acknowledged."""

    def __init__(self) -> None:
        self.acknowledged = 0  # versions up to here have been followed by a bump
        self.faults: list[str] = []

    def check(self, floor: int, value: str, state: str) -> None:
        """Note a value that was older than what had been acknowledged before its call began."""
        if int(value.rpartition("v")[2]) < floor:
            self.faults.append(f"{value} ({state}) to a call that began after v{floor}")


def oracle(shop: Shop, seconds: float, least: int, rng: random.Random) -> Ledger:
    """Bump at random while threads read and fill, for some s and until there were some hits; return what was told."""
    ledger, stop, local = Ledger(), threading.Event(), threading.local()
    shop.vouch()

    def read() -> None:
        local.rng = random.Random(rng.random())
        while not stop.is_set():
            key, floor = local.rng.choice(IDS), ledger.acknowledged
            how = local.rng.randrange(5)
            if how == 0:
                for value in shop.media.get_many(local.rng.sample(IDS, 3)).values():
                    ledger.check(floor, value, "many")
            elif how == 1:
                for value in shop.thumbs(local.rng.sample(IDS, 3)).values():
                    ledger.check(floor, value, "thumbs")
            elif how == 2:
                entry = shop.media.peek(key)
                if entry is not None:
                    ledger.check(floor, entry.value, "peek")
            else:
                entry = shop.media.lookup(key)
                ledger.check(floor, entry.value, entry.state)

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read) for _ in range(4)]
        try:
            began = time.monotonic()
            while (took := time.monotonic() - began) < seconds or _hits(shop) < least:
                assert took < 120, "hardly anything is a hit"
                _one_change(shop, ledger, rng)
                stop.wait(rng.choice([0, 0.001, 0.01, 0.03]))
        finally:
            stop.set()
        for done in reading:
            done.result()
    return ledger


def _hits(shop: Shop) -> int:
    return sum(one.hits for one in shop.cache.stats().functions)


def _one_change(shop: Shop, ledger: Ledger, rng: random.Random) -> None:
    """Commit a version, then make every node's values unreachable in one way or another."""
    shop.version += 1
    version = shop.version
    for voucher in shop.vouchers:
        how = rng.randrange(6)
        if how == 0:
            voucher.withdraw()
            voucher.generation = rng.getrandbits(62) + 1
            voucher.write()
        elif how == 1:
            voucher.withdraw()  # and come back later, under the old generation only if nothing was missed
            voucher.generation = rng.getrandbits(62) + 1
        elif how == 2:
            voucher.write(rules=frozenset())
            voucher.generation = rng.getrandbits(62) + 1
        else:
            voucher.bump()
    ledger.acknowledged = version


def test_no_older_value_after_a_bump(shop: Shop) -> None:
    """No call that began after a bump was acknowledged is told a value of before, however it asks.

    Guard: the comparison of generations, and the verdict on each record; the seed is printed.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert oracle(shop, 1.5, 20, random.Random(seed)).faults == []
