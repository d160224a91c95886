"""What `test_gevent` runs, each case in a process of its own, and prints as JSON.

    python -m tests.integration.greenlets CASE ORDER URL PID

URL and PID are those of a memcached that the case may pause. ORDER is "patched-first", or "declared-first": the cache
and its functions exist before gevent patches the standard library, as in a module that is imported early.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import monkey

POOL = 8  # connections, far fewer than greenlets
TIMEOUT = 3.0  # s one exchange may take of a cache that does not answer
PATIENCE = 60.0  # s; a busy machine is no slow cache
TICK = 0.01  # s


class Application:
    """A cached function whose loader takes 50 ms."""

    def __init__(self, url: str, timeout: float) -> None:
        from leasecache import Cache  # not before its turn: the order is what is tested

        self.loads: list[int] = []
        between = "&" if "?" in url else "?"
        self.cache = Cache.from_url(f"{url}{between}timeout={timeout}&connect_timeout={timeout}&pool={POOL}")
        self.get_item = self.cache.cached(
            "item:{item_id}", ttl=120, stale_for=100, lease_for=PATIENCE, wait_for=PATIENCE
        )(self.load)

    def load(self, item_id: int) -> int:
        self.loads.append(item_id)
        time.sleep(0.05)
        return item_id


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a process meanwhile: it accepts connections and answers nothing."""
    from leasecache.lab import warden  # not before its turn, either

    os.kill(pid, signal.SIGSTOP)
    try:
        while not all(warden.stopped(process) for process in warden.tree(pid)):
            gevent.sleep(TICK / 10)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def herd(app: Application, pid: int) -> dict[str, Any]:
    """Two hundred greenlets call one cold key."""
    calls = [gevent.spawn(app.get_item, 1) for _ in range(200)]
    gevent.joinall(calls, timeout=PATIENCE)
    return {"values": sorted({call.value for call in calls}), "loads": len(app.loads)}


def stall(app: Application, pid: int) -> dict[str, Any]:
    """A call waits for a cache that does not answer, while another greenlet ticks."""
    with gevent.Timeout(PATIENCE):
        while app.get_item.lookup(1).state != "fresh":
            gevent.sleep(TICK)
    ticks = []
    with paused(pid):
        began = time.monotonic()
        call = gevent.spawn(app.get_item, 1)
        while not call.ready():
            gevent.sleep(TICK)
            ticks.append(time.monotonic())
    return {"value": call.value, "blocked": ticks[-1] - began, "ticks": len(ticks)}


def interrupt(app: Application, pid: int) -> dict[str, Any]:
    """More calls than there are connections are interrupted while they wait for the cache; then all are made again."""

    def hurried(item_id: int) -> str:
        try:
            with gevent.Timeout(0.2):
                return str(app.get_item(item_id))
        except gevent.Timeout:
            return "interrupted"

    items = range(3 * POOL)
    for item_id in items:
        app.get_item(item_id)
    with paused(pid):
        hurried_calls = [gevent.spawn(hurried, item_id) for item_id in items]
        gevent.joinall(hurried_calls, timeout=PATIENCE)
    again = [gevent.spawn(app.get_item.lookup, item_id) for item_id in items]
    gevent.joinall(again, timeout=PATIENCE)
    return {
        "interrupted": {call.value for call in hurried_calls} == {"interrupted"},
        "right": [call.value.value for call in again] == list(items),
        "states": sorted({call.value.state for call in again}),
    }


def refresh(app: Application, pid: int) -> dict[str, Any]:
    """A dozen greenlets are served stale values, while the workers in the background load the new ones."""
    items = range(12)
    for item_id in items:
        app.get_item(item_id)
    for item_id in items:
        app.get_item.invalidate(item_id)
    stale = [gevent.spawn(app.get_item.lookup, item_id) for item_id in items]
    gevent.joinall(stale, timeout=PATIENCE)
    with gevent.Timeout(PATIENCE):
        while any(app.get_item.lookup(item_id).state == "stale" for item_id in items):
            gevent.sleep(TICK)
    return {"states": sorted({call.value.state for call in stale}), "loads": len(app.loads)}


CASES: dict[str, Callable[[Application, int], dict[str, Any]]] = {
    case.__name__: case for case in (herd, stall, interrupt, refresh)
}


def main(case: str, order: str, url: str, pid: str) -> None:
    if order == "patched-first":
        monkey.patch_all()
    app = Application(url, TIMEOUT if case == "stall" else PATIENCE)
    if order == "declared-first":
        monkey.patch_all()
    with app.cache:
        print(json.dumps(CASES[case](app, int(pid))))


if __name__ == "__main__":
    main(*sys.argv[1:])
