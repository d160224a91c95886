"""What tests of callers share: a loader that can be held up, a function that it is the loader of, a held lease."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leasecache import Cache
from leasecache.flow import AHEAD_ALWAYS
from leasecache.lease import Lease
from tests.facade import BlockingCache

LONG = 60.0  # s: on a busy machine no lease runs out and no wait ends but where a test says so


class Loader:
    """A loader that counts its runs and can be held up or told to fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.fault: Exception | None = None
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self._lock = threading.Lock()

    def __call__(self, value: Any) -> Any:
        with self._lock:
            self.calls += 1
            fault = self.fault
        self.began.set()
        assert self.may_end.wait(LONG)
        if fault is not None:
            raise fault
        return value

    def hold(self) -> None:
        self.may_end.clear()
        self.began.clear()


def declare(cache: Cache, loader: Loader, **policy: Any) -> Any:
    @cache.cached("item:{item_id}", **{"ttl": 60, "lease_for": LONG, "wait_for": LONG, **policy})
    def get_item(item_id: int) -> int:
        return int(loader(item_id))

    return get_item


def in_threads(count: int, call: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(count)]]


def taken(cache: Any, key: bytes) -> Any:
    """Win the refresh of a fresh value."""

    def lease_get() -> Any:
        return cache.driver().store.lease_get(key, LONG, AHEAD_ALWAYS)

    return cache.loop.run(lease_get) if isinstance(cache, BlockingCache) else lease_get()


def held(cache: Cache, get_item: Any, *args: Any) -> Lease:
    """Hold the lease of a key as a process would that never finishes loading."""
    lease = cache.lease_get(get_item.key(*args), lease_for=LONG)
    assert isinstance(lease, Lease)
    return lease


def count_permits(get_item: Any) -> list[bytes]:
    """Return a list that grows by a key whenever a caller asks for the permit to load without a lease."""
    permits = get_item._self_core._runtime.driver().local.permits
    entered: list[bytes] = []
    enter = permits.enter

    def counted(key: bytes) -> Any:
        answer = enter(key)
        entered.append(key)
        return answer

    permits.enter = counted
    return entered


def count_joins(get_item: Any) -> list[bytes]:
    """Return a list that grows by a key whenever a caller begins to wait for somebody's lease."""
    flights = get_item._self_core._runtime.driver().local.flights
    joined: list[bytes] = []
    join_or_begin = flights.join_or_begin

    def counted(key: bytes, token: Any) -> Any:
        answer = join_or_begin(key, token)
        joined.append(key)
        return answer

    flights.join_or_begin = counted
    return joined
