"""The ends of every policy field and codec, on each store: what a value outlives, and what it does not."""

import dataclasses
import datetime
import decimal
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypedDict

import freezegun
import msgspec
import pydantic
import pytest
import time_machine

from leasecache import Cache, Entry, codecs
from leasecache.codecs import describe
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Hit, Lease, Stored
from leasecache.stores.memcached import MemcachedNode

DAY = 86400
LAST_DATE = 2**31 - 1  # s since 1970: 19 January 2038, the last date that memcached takes


@pytest.fixture(params=["memory", "memcached", "redis"])
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """A cache of the test's own on each store."""
    patient = "" if request.param == "memory" else "&timeout=20&connect_timeout=20"
    base = "memory://" if request.param == "memory" else request.getfixturevalue(f"shared_{request.param}").url
    with Cache.from_url(f"{base}?namespace={uuid.uuid4().hex[:12]}{patient}", background=None) as opened:
        yield opened


class Loader:
    """Returns what it is told to, and counts."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.value


def declare(cache: Cache, loader: Loader, annotation: Any = int, **policy: Any) -> Any:
    """Return a cached function of the value of `loader`."""

    def get_item(item_id: int) -> Any:
        return loader()

    get_item.__annotations__["return"] = annotation
    return cache.cached("item:{item_id}", **{"ttl": 60, "jitter": 0, **policy})(get_item)


def left(entry: Entry | None) -> float:
    """Return the s an entry has left."""
    assert entry is not None
    assert entry.expires_in is not None
    return entry.expires_in


def plant(cache: Cache, key: bytes, flags: int, body: bytes) -> None:
    """Store what no function of ours would store."""
    store = cache.driver().store
    store.invalidate([key])
    lease = store.lease_get(key, 10)
    assert isinstance(lease, Lease)
    assert store.lease_set(lease, flags, body, 60) == Stored()


def stored(cache: Cache, key: bytes) -> Hit:
    """Return flags and body as they are in the store."""
    found = cache.driver().store.look(key)
    assert found is not None
    return found


def test_a_ttl_of_one_second(cache: Cache) -> None:
    """The shortest ttl is a hit at first, and is over by itself."""
    loader = Loader()
    get_item = declare(cache, loader, ttl=1)
    get_item(1)
    wait_until(lambda: get_item.peek(1) is None, 60, "the end of the ttl")
    assert get_item.lookup(1).state == "loaded"


@pytest.mark.parametrize("days", [29, 30, 31, 400, 20_000])
def test_a_ttl_of_more_than_thirty_days(cache: Cache, days: int) -> None:
    """Beyond 30 days, where memcached wants a date, a value lives as long as asked, there until 2038 at most."""
    get_item = declare(cache, Loader(), ttl=days * DAY)
    get_item(1)
    on_memcached = isinstance(cache.driver().store.nodes[0], MemcachedNode)
    expected = min(days * DAY, LAST_DATE - int(time.time())) if on_memcached else days * DAY
    assert get_item.lookup(1).state == "fresh"
    assert expected - 60 <= left(get_item.peek(1)) <= expected + 1


@pytest.mark.parametrize("skew", [-30 * 365 * DAY, -40 * DAY, 40 * DAY, 30 * 365 * DAY])
@pytest.mark.parametrize("ttl", [60, 60 * DAY])
def test_a_clock_that_is_wrong(shared_memcached: MemcachedServer, skew: int, ttl: int) -> None:
    """Guard: a wire TTL is no date by the client's clock. One that is years off stores a value for its ttl."""
    now = datetime.datetime.now(datetime.timezone.utc)
    with Cache.from_url(f"{shared_memcached.url}?namespace={uuid.uuid4().hex[:12]}") as cache:
        get_item = declare(cache, Loader(), ttl=ttl)
        with time_machine.travel(now + datetime.timedelta(seconds=skew)):
            assert get_item.lookup(1).state == "loaded"
        assert ttl - 60 <= left(get_item.peek(1)) <= ttl


def test_a_clock_that_is_set_while_a_value_lives(cache: Cache) -> None:
    """A wall clock set forwards or backwards neither ends a value nor prolongs it; only time that passes does."""
    loader = Loader()
    get_item = declare(cache, loader, ttl=1000)
    get_item(1)
    real = left(get_item.peek(1))
    for years in (-20, 20):
        with pytest.MonkeyPatch.context() as patch:
            now = datetime.datetime.now().timestamp()
            patch.setattr("time.time", lambda now=now, years=years: now + years * 365 * DAY)
            assert real - 60 <= left(get_item.peek(1)) <= real
            assert get_item.lookup(1).state == "fresh"
    assert loader.calls == 1


Shift = Callable[[float], object]


@contextmanager
def frozen() -> Iterator[Shift]:
    """A clock that stands still until the test shifts it by some s, by freezegun."""
    with freezegun.freeze_time() as clock:
        yield clock.tick


@contextmanager
def travelled() -> Iterator[Shift]:
    """The same by time-machine; since its version 3 it leaves the monotonic clock alone, so the other one stands in."""
    with time_machine.travel(0, tick=False) as traveller, pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", time.time)
        yield traveller.shift


@pytest.mark.parametrize("mocked", [frozen, travelled])
def test_memory_follows_a_mocked_clock(mocked: Callable[[], AbstractContextManager[Shift]]) -> None:
    """In tests that travel in time, a value in memory is there until its ttl is over, and gone after it."""
    loader = Loader()
    get_item = declare(Cache.from_url("memory://"), loader, ttl=60)
    with mocked() as shift:
        get_item(1)
        shift(59.9)
        assert get_item.lookup(1).state == "fresh"
        shift(0.2)
        assert get_item.lookup(1).state == "loaded"
        shift(3600)
        assert get_item.peek(1) is None
        assert get_item.lookup(1).state == "loaded"
    assert loader.calls == 3


@pytest.mark.parametrize("mocked", [frozen, travelled])
def test_a_lease_in_memory_follows_a_mocked_clock(mocked: Callable[[], AbstractContextManager[Shift]]) -> None:
    """A lease that nobody has used is free again when the clock has passed its end."""
    cache = Cache.from_url("memory://")
    with mocked() as shift:
        assert isinstance(cache.lease_get(b"k", lease_for=10), Lease)
        shift(9)
        assert not isinstance(cache.lease_get(b"k"), Lease)
        shift(2)
        assert isinstance(cache.lease_get(b"k"), Lease)


def test_stale_for_longer_than_the_ttl(cache: Cache) -> None:
    """An invalidated value is never served for longer than it would have lived."""
    loader = Loader()
    get_item = declare(cache, loader, ttl=50, stale_for=5000)
    get_item(1)
    get_item.invalidate(1)
    assert 1 <= left(get_item.peek(1)) <= 50
    assert get_item.lookup(1).state == "stale"


def test_stale_for_without_a_value(cache: Cache) -> None:
    """Where there is nothing to serve, an invalidation leaves nothing, however long stale_for is."""
    get_item = declare(cache, Loader(), stale_for=5000)
    get_item.invalidate(1)
    assert get_item.peek(1) is None
    assert get_item.lookup(1).state == "loaded"


@pytest.mark.parametrize(("negative_ttl", "expected"), [(None, 600), (100, 100), (5000, 5000)])
def test_negative_ttl(cache: Cache, negative_ttl: float | None, expected: float) -> None:
    """A cached None lives for negative_ttl, shorter or longer than a value; a value lives for its ttl."""
    loader = Loader(None)
    get_item = declare(cache, loader, int | None, ttl=600, negative_ttl=negative_ttl)
    assert get_item(1) is get_item(1) is None
    assert expected - 60 <= left(get_item.peek(1)) <= expected
    loader.value = 7
    assert get_item(2) == 7
    assert 540 <= left(get_item.peek(2)) <= 600
    assert loader.calls == 2


@pytest.mark.parametrize("jitter", [0.1, 0.5])
def test_jitter(cache: Cache, jitter: float) -> None:
    """Values live between (1 - jitter) * ttl and ttl, all over that range, so that a batch does not expire at once."""
    get_item = declare(cache, Loader(), ttl=10_000, jitter=jitter)
    get_item.get_many(range(300))
    lives = [left(get_item.peek(i)) for i in range(300)]
    least = (1 - jitter) * 10_000
    assert least - 60 <= min(lives)
    assert max(lives) <= 10_000
    tenths = {int((life - least) / (10_000 - least) * 10) for life in lives}
    assert tenths >= set(range(1, 9))


def test_compression_threshold(cache: Cache) -> None:
    """A body of exactly compress_over bytes is stored as it is, one byte more is compressed, noise never is."""
    loader = Loader()
    get_item = declare(cache, loader, bytes, compress_over=1000)
    noise = os.urandom(5000)
    for value, compressed in ((b"a" * 1000, False), (b"a" * 1001, True), (noise, False)):
        loader.value = value
        get_item.refresh(1)
        found = stored(cache, get_item.key(1))
        assert describe(found.flags).compressed is compressed
        assert (len(found.value) < len(value)) is compressed
        assert get_item(1) == value


@pytest.mark.parametrize(
    "body",
    [
        b"garbage",
        b"",
        zlib.compress(b"a" * 50)[:-3],
        zlib.compress(b"a" * 50) + b"x",
        zlib.compress(b"a" * 6000),
        zlib.compress(b"a" * 10**8),
    ],
    ids=["garbage", "empty", "cut short", "longer", "too large", "bomb"],
)
def test_a_compressed_body_that_cannot_be_read(cache: Cache, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded anew once and replaced; it is never an error, never a gigabyte, and not a miss for good."""
    monkeypatch.setattr(codecs, "INFLATED_MAX", 5000)
    loader = Loader(b"right")
    get_item = declare(cache, loader, bytes, compress_over=10)
    get_item(1)
    flags = stored(cache, get_item.key(1)).flags | 1 << 27
    plant(cache, get_item.key(1), flags, body)
    assert [get_item(1) for _ in range(3)] in ([b"right"] * 3, [b"a" * 50] * 3)
    assert loader.calls <= 2


@dataclasses.dataclass
class Media:
    """A dataclass."""

    id: int
    title: str | None
    taken: datetime.datetime
    price: decimal.Decimal
    tags: frozenset[str] = frozenset()


class Point(msgspec.Struct, frozen=True):
    """A msgspec Struct."""

    x: float
    y: float


class Address(TypedDict):
    """A TypedDict."""

    street: str
    number: int


class Account(pydantic.BaseModel):
    """A Pydantic model."""

    id: uuid.UUID
    opened: datetime.date
    balance: decimal.Decimal


UTC = datetime.timezone.utc
ID = uuid.UUID("0e37df36-f698-11e6-8dd4-cb9ced3df976")
VALUES: list[tuple[Any, Any]] = [
    (bytes, bytes(range(256)) + b"\r\nEND\r\n"),
    *((bytes, b""), (str, ""), (str, "ü\U0001f511\0\r\n"), (str | None, "x"), (bytes | None, b"\0")),
    (Media | None, Media(1, None, datetime.datetime(2024, 2, 29, 1, tzinfo=UTC), decimal.Decimal("1.10"))),
    (list[Media], [Media(1, "a", datetime.datetime(1, 1, 1), decimal.Decimal("NaN").copy_abs(), frozenset("ab"))][:0]),
    (dict[str, Media], {"a": Media(2**63, "", datetime.datetime(9999, 12, 31), decimal.Decimal("-0.00"))}),
    *((Point, Point(0.1, -1e308)), (tuple[Point, int], (Point(1.0, 2.0), 3)), (Address, {"street": "s", "number": 1})),
    (Account, Account(id=ID, opened=datetime.date(2024, 2, 29), balance=decimal.Decimal("0.30"))),
    *((decimal.Decimal, decimal.Decimal("1E+30")), (uuid.UUID, ID), (datetime.date, datetime.date(1, 1, 1))),
    (datetime.datetime, datetime.datetime(2024, 2, 29, 12, 0, 0, 1)),
    (datetime.datetime, datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=5)))),
    *((datetime.timedelta, datetime.timedelta(days=1, microseconds=1)), (datetime.time, datetime.time(23, 59, 59, 1))),
    *((bool, False), (int, 0), (int, -(2**63)), (int, 2**64 - 1), (float, float("inf")), (list[int], [])),
]


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=lambda part: str(part)[:40])
def test_values_come_back(cache: Cache, annotation: Any, value: Any) -> None:
    """What was loaded is what a hit returns, of the same type; the second call does not load."""
    loader = Loader(value)
    get_item = declare(cache, loader, annotation)
    assert get_item(1) == value
    hit = get_item(1)
    assert (hit, type(hit), loader.calls) == (value, type(value), 1)


@pytest.mark.parametrize("codec", ["json", "pickle"])
def test_codecs_by_name(cache: Cache, codec: str) -> None:
    """What has no precise type is stored by the codec that was asked for; a change of codec is one load."""
    loader = Loader({"a": [1, None, "ü"], "b": {"c": 0.5}})
    get_item = declare(cache, loader, dict, codec=codec)
    assert get_item(1) == get_item(1) == loader.value
    assert describe(stored(cache, get_item.key(1)).flags).codec == codec
    other = declare(cache, loader, dict, codec="pickle" if codec == "json" else "json")
    assert other(1) == other(1) == loader.value
    assert loader.calls == 2


def test_a_value_of_another_type_than_annotated(cache: Cache) -> None:
    """It is an error of the loader that names the function, stores nothing, and frees the key for a better one."""
    loader = Loader({"id": 1})
    get_item = declare(cache, loader, Media)
    with pytest.raises(TypeError, match=r"get_item returned a dict that cannot be cached: expected Media, not dict"):
        get_item(1)
    loader.value = Media(1, "a", datetime.datetime(2024, 1, 1), decimal.Decimal(1))
    assert get_item.lookup(1).state == "loaded"
    assert get_item.lookup(1).state == "fresh"
