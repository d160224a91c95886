"""Plain hits in memory: without the store's lock, and with all that it decides."""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest

from leasecache import _accel
from leasecache.lease import Lease, Stored
from leasecache.stores.memory import MemoryStore
from tests.twins import USABLE

FLAGS = 4026531841


@pytest.fixture(params=USABLE, ids=lambda twin: twin.__name__)
def twin(request: pytest.FixtureRequest) -> Any:
    """Each twin that works with the state of this process."""
    return request.param


@pytest.fixture
def store(twin: Any, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store that makes readers of this twin."""
    monkeypatch.setattr(_accel, "MemoryReader", twin.MemoryReader)
    return MemoryStore(capacity=10_000)


def put(store: MemoryStore, key: bytes, value: bytes = b"value", ttl: float = 60) -> None:
    """Store a value."""
    lease = store.lease_get(key, 10)
    assert isinstance(lease, Lease)
    assert store.lease_set(lease, FLAGS, value, ttl) == Stored()


def test_memory_clock_is_looked_up(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is that of the moment of the call, so that tests can move it."""
    put(store, b"key", ttl=60)
    read = store.reader(10, 0, FLAGS)
    assert read(b"key") == b"value"
    later = time.monotonic() + 61
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert isinstance(read(b"key"), Lease)


def test_memory_hits_keep_an_item(store: MemoryStore) -> None:
    """What is read stays when there is no room for all."""
    put(store, b"used")
    read = store.reader(10, 0, FLAGS)
    for n in range(100):
        put(store, b"other:%d" % n, b"x" * 500)
        assert read(b"used") == b"value"


def test_memory_refresh_ahead(store: MemoryStore) -> None:
    """Shortly before its end one reader gets a value with the lease to refresh it, the others the value alone."""
    put(store, b"key", ttl=60)
    read = store.reader(10, 61, FLAGS)
    won = read(b"key")
    assert isinstance(won, Lease)
    assert (won.value, won.fresh) == (b"value", True)
    assert read(b"key") == b"value"


@pytest.mark.parametrize("stale_for", [0, 30])
def test_memory_invalidated(store: MemoryStore, stale_for: float) -> None:
    """What was invalidated is no plain hit, and neither are a stub and other flags."""
    read = store.reader(10, 0, FLAGS)
    put(store, b"key")
    assert type(store.reader(10, 0, FLAGS + 1)(b"key")) is not bytes
    store.invalidate([b"key"], stale_for)
    assert isinstance(read(b"key"), Lease)
    assert type(read(b"key")) is not bytes


def test_memory_reader_between_two_steps_of_an_eviction(store: MemoryStore) -> None:
    """A reader that touches an item amid an eviction does not break it: guarded by `popitem`, one step, no iterator."""

    class Interrupted(OrderedDict[bytes, Any]):
        """Items that another thread reads as soon as somebody has begun to iterate over them."""

        def __iter__(self) -> Iterator[bytes]:
            begun = super().__iter__()
            self.move_to_end(b"used")
            return begun

    store._items = Interrupted()
    put(store, b"used")
    for n in range(50):
        put(store, b"other:%d" % n, b"x" * 500)
    assert store.stats()["memory"]["bytes"] <= 10_000


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty")
def test_memory_readers_and_writers(store: MemoryStore) -> None:
    """Readers that touch items while others are evicted disturb nobody, and get no other key's value."""
    read = store.reader(10, 0, FLAGS)
    over = threading.Event()
    wrong: list[Any] = []

    def reading() -> None:
        while not over.is_set():
            for n in range(10):
                found = read(b"read:%d" % n)
                if type(found) is bytes and found != b"%d" % n:
                    wrong.append(found)
                elif isinstance(found, Lease):
                    store.lease_set(found, FLAGS, b"%d" % n, 60)

    def written() -> None:
        for n in range(2000):
            put(store, b"written:%d" % n, b"x" * 300)

    readers = [threading.Thread(target=reading) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        written()
    finally:
        over.set()
        for reader in readers:
            reader.join(60)
    assert wrong == []
    assert store.stats()["memory"]["bytes"] <= 10_000
