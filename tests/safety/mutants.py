"""Guards taken out one at a time, to see that a run without them fails."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from leasecache.lease import Lease, Stale, Token
from leasecache.singleflight import Flight
from leasecache.stores import meta
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.pool import Pool


def _set_without_token() -> None:
    lease_set = meta.lease_set
    meta.lease_set = lambda key, cas, *rest: lease_set(key, cas, *rest).replace(b" C%d " % cas, b" ", 1)


def _store_over_any_connection() -> None:
    Pool.acquire_before = lambda self, epoch: self.acquire()  # type: ignore[method-assign]


def _join_any_flight() -> None:
    Flight.admits = lambda self, token: True  # type: ignore[method-assign]


def _join_any_token_of_the_same_connections() -> None:
    def admits(self: Flight, token: Token) -> bool:
        return self.token is not None and token.born <= self.token.epoch

    Flight.admits = admits  # type: ignore[method-assign]


def _acknowledge_before_the_answer() -> None:
    invalidate = MemcachedNode.invalidate

    def hasty(self: Any, keys: Any, stale_for: float = 0) -> None:
        _later(invalidate, self, list(keys), stale_for)

    MemcachedNode.invalidate = hasty  # type: ignore[method-assign]


def _later(work: Callable[..., None], *args: Any) -> None:
    def run() -> None:
        with contextlib.suppress(Exception):
            work(*args)

    threading.Thread(target=run, daemon=True).start()


def _stretch_the_window() -> None:
    window = meta._window
    meta._window = lambda reply, stale_for: (seen := window(reply, stale_for))._replace(
        seconds=seen.seconds and stale_for
    )


def _keep_the_pool_after_a_fork() -> None:
    Pool.forget = lambda self: None  # type: ignore[method-assign]


def _steal_without_voiding() -> None:
    def steal(self: Any, key: bytes, token: Token, lease_for: float) -> Any:
        answer = self.lease_get(key, lease_for)
        if getattr(answer, "token", None) is None or answer.token.cas != token.cas:
            return answer
        value = answer.value if isinstance(answer, Stale) else None
        return Lease(key, answer.token, value)

    MemcachedNode.steal = steal  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "set-without-token": _set_without_token,
    "any-connection": _store_over_any_connection,
    "join-any-flight": _join_any_flight,
    "join-any-token": _join_any_token_of_the_same_connections,
    "hasty-acknowledgement": _acknowledge_before_the_answer,
    "stretched-window": _stretch_the_window,
    "fork-keeps-pool": _keep_the_pool_after_a_fork,
    "steal-without-voiding": _steal_without_voiding,
}


def apply(name: str | None) -> None:
    """Take a guard out in this process; None takes out nothing."""
    if name is not None:
        MUTANTS[name]()
