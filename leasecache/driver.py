"""The synchronous driver: performs what flows ask for. Everything that waits, waits here."""

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from leasecache.background import INLINE, Executor
from leasecache.errors import NodeError
from leasecache.flow import Fill, Get, Join, Load, Release, Request, Sleep, Spawn, Task, refresh
from leasecache.lease import Lease, Refused
from leasecache.singleflight import Flights, Permits
from leasecache.stores.base import Store

log = logging.getLogger("leasecache")
T = TypeVar("T")


class Driver:
    """Runs flows against one store."""

    def __init__(self, store: Store, background: Executor) -> None:
        self.store = store
        self.flights = Flights()  # of this store: the tokens of two stores can be alike
        self.permits = Permits()
        self._background = background
        self._perform: dict[type[Any], Callable[[Any, Task], Any]] = {
            Get: self._get,
            Fill: self._fill,
            Release: lambda request, task: self.release(request.lease),
            Load: lambda request, task: task.load(),
            Spawn: self._spawn,
            Sleep: lambda request, task: time.sleep(request.seconds),
            Join: lambda request, task: request.flight.wait(request.seconds),
        }

    def run(self, flow: Generator[Request, Any, T], task: Task) -> T:
        """Perform the flow's requests until it returns; what a request raises is thrown into it."""
        try:
            request = next(flow)
            while True:
                try:
                    result = self._perform[type(request)](request, task)
                except BaseException as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            flow.close()  # a signal between two requests, which the flow has not seen: what it began must end

    def release(self, lease: Lease) -> None:
        """Give a lease back; when its node is gone, it runs out by itself."""
        try:
            self.store.release(lease)
        except NodeError as error:
            log.debug("a lease on %s runs out by itself: %s", lease.key.decode(), error)

    def _get(self, request: Get, task: Task) -> Any:
        try:
            ahead = task.policy.refresh_ahead if request.refresh_ahead is None else request.refresh_ahead
            return self.store.lease_get(task.key, task.policy.lease_for, ahead)
        except NodeError as error:
            return error

    def _fill(self, request: Fill, task: Task) -> Any:
        try:
            return self.store.lease_set(request.lease, request.flags, request.body, request.ttl)
        except NodeError as error:
            return Refused(str(error))

    def _spawn(self, request: Spawn, task: Task) -> None:
        executor = INLINE if task.inline else self._background
        try:
            executor.submit(self._refresh, task, request.lease, time.monotonic())
        except Exception as error:  # shut down, or out of threads: the caller has its value
            log.warning("no background refresh of %s: %s", task.key.decode(), error, exc_info=error)
            self.release(request.lease)

    def _refresh(self, task: Task, lease: Lease, asked: float) -> None:
        if time.monotonic() - asked > task.policy.lease_for / 2:
            self.release(lease)  # too late to be sure of storing; the next reader wins
            return
        try:
            self.run(refresh(task, lease), task)
        except Exception as error:
            log.warning("background refresh of %s failed: %s", task.key.decode(), error, exc_info=error)
