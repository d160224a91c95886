"""A signal can arrive between any two steps: what was taken and never given back is not missing for ever."""

import signal
from typing import Any

import pytest

from leasecache import Cache
from leasecache.singleflight import Permits
from leasecache.stores.pool import Connection, Pool


def test_permit_taken_by_an_interrupted_caller_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt just after the permit was given does not keep later callers of the key waiting."""
    cache = Cache.from_url("null://")

    @cache.cached("f:{n}", ttl=60, wait_for=0.1, lease_for=1)
    def f(n: int) -> int:
        return n

    enter = Permits.enter

    def interrupted(permits: Permits, key: bytes) -> Any:
        answer = enter(permits, key)
        signal.raise_signal(signal.SIGINT)
        return answer

    monkeypatch.setattr(Permits, "enter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        f(1)
    monkeypatch.undo()
    assert f(1) == 1


def test_connection_lost_by_an_interrupted_caller_is_replaced() -> None:
    """A connection that was taken and dropped does not count among those that are open."""

    class Wire:
        def close(self) -> None:
            """Do nothing."""

    pool = Pool(lambda: Connection(Wire(), None, explicit=False), 1, patience=0.1)  # type: ignore[arg-type]
    lost = pool.acquire().epoch
    assert pool.acquire_before(lost) is None
    assert pool.acquire().epoch > lost
