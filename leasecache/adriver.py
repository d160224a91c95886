"""The asynchronous driver: performs what flows ask for in tasks of the caller's event loop."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from typing import Any, TypeVar

from leasecache.apoller import AsyncPoller
from leasecache.batch import FirstOf, LoadAll, Raised, Step, Together, gather
from leasecache.errors import NodeError
from leasecache.flow import look_up, refresh
from leasecache.lease import Fill, Lease, Refused
from leasecache.singleflight import Flight
from leasecache.stores.base import AsyncStore
from leasecache.task import Get, Join, Load, Local, Look, Release, Request, Spawn, Steal, Task, measured

log = logging.getLogger("leasecache")
T = TypeVar("T")
AsyncLoadMany = Callable[[Sequence[Task]], Awaitable[Sequence[Any]]]
Perform = Callable[[Any, Task], Awaitable[Any]]


class AsyncDriver:
    """Runs flows against one store. `inline`: refreshes run in the task that has won them."""

    def __init__(self, store: AsyncStore, inline: bool = False) -> None:
        self.store = store
        self.local = Local()
        self._inline = inline
        self._pollers: dict[asyncio.AbstractEventLoop, AsyncPoller] = {}
        self._refreshes: set[asyncio.Task[None]] = set()
        self._perform: dict[type[Any], Perform] = {
            Get: lambda request, task: _node(self.store.lease_get(*task.ask(*request))),
            Look: lambda request, task: self._poller().wait(request),
            Steal: lambda request, task: _node(
                self.store.steal(task.key, request.token, request.lease_for, task.profile.mark)
            ),
            Fill: lambda request, task: self._fill(request),
            Release: lambda request, task: self.release(request.lease),
            Load: lambda request, task: self._load(task),
            Spawn: lambda request, task: self._spawn([(task, request.lease)], None),
            Join: lambda request, task: join(request.flight, request.until),
        }

    async def run(self, flow: Generator[Request, Any, T], task: Task) -> T:
        """Perform the flow's requests until it returns; what a request raises is thrown into it."""
        return await self._drive(flow, lambda request: self._perform[type(request)](request, task))

    async def run_many(
        self, steps: Generator[Step, Any, T], load_many: AsyncLoadMany | None = None, queued: Collection[bytes] = ()
    ) -> T:
        """Perform the steps of `gather`; `load_many` loads the values of several tasks in one call.

        No loader waits for the keys `queued`, whose loads may be waiting for it to end.
        """
        running: dict[int, asyncio.Task[Any]] = {}
        try:
            with self.local.loading(queued):
                return await self._drive(steps, lambda step: self._perform_step(step, load_many, running))
        finally:
            await _cancel(running.values())

    async def release(self, lease: Lease) -> None:
        """Give a lease back; when its node is gone, it runs out by itself."""
        try:
            await self.store.release(lease)
        except NodeError as error:
            log.debug("a lease on %s runs out by itself: %s", lease.key.decode(), error)

    async def aclose(self) -> None:
        """Cancel the refreshes that run in this event loop; they give their leases back."""
        loop = asyncio.get_running_loop()
        await _cancel([refresh for refresh in self._refreshes if refresh.get_loop() is loop])

    @staticmethod
    async def _drive(flow: Generator[Any, Any, T], perform: Callable[[Any], Awaitable[Any]]) -> T:
        try:
            request = next(flow)
            while True:
                try:
                    result = await perform(request)
                except BaseException as error:  # a cancellation too: a flow that holds a lease gives it back
                    request = flow.throw(error)
                else:
                    request = flow.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            flow.close()

    def _poller(self) -> AsyncPoller:
        loop = asyncio.get_running_loop()
        if loop not in self._pollers:
            self._pollers = {known: poller for known, poller in self._pollers.items() if not known.is_closed()}
            self._pollers[loop] = AsyncPoller(self.store)
        return self._pollers[loop]

    async def _load(self, task: Task) -> Any:
        with self.local.loading((task.key,)), measured(task.profile):
            return await task.load()

    async def _fill(self, fill: Fill) -> Any:
        return _outcome(await _node(self.store.lease_set(*fill)))

    async def _perform_step(
        self, step: Step, load_many: AsyncLoadMany | None, running: dict[int, asyncio.Task[Any]]
    ) -> Any:
        if isinstance(step, LoadAll):
            assert load_many is not None
            with self.local.loading({task.key for task in step.tasks}), measured(step.tasks[0].profile):
                return await load_many(step.tasks)
        if isinstance(step, FirstOf):
            return await self._first_of(step, running)
        return await self._together(step, load_many)

    async def _first_of(self, step: FirstOf, running: dict[int, asyncio.Task[Any]]) -> dict[int, Any]:
        for position, (task, request) in step.requests.items():
            if position not in running:
                running[position] = asyncio.create_task(self._attempt(task, request))
        await asyncio.wait(running.values(), return_when=asyncio.FIRST_COMPLETED)
        ended = [position for position, task in running.items() if task.done()]
        return {position: running.pop(position).result() for position in ended}

    async def _together(self, step: Together, load_many: AsyncLoadMany | None) -> Sequence[Any]:
        if step.kind is Get:
            return await self.store.lease_get_many([task.ask(*request) for task, request in step.requests])
        if step.kind is Fill:
            return [_outcome(found) for found in await self.store.lease_set_many([fill for _, fill in step.requests])]
        if step.kind is Spawn and load_many is not None:
            await self._spawn([(task, request.lease) for task, request in step.requests], load_many)
            return [None] * len(step.requests)
        return await asyncio.gather(*(self._attempt(task, request) for task, request in step.requests))

    async def _attempt(self, task: Task, request: Request) -> Any:
        try:
            return await self._perform[type(request)](request, task)
        except Exception as error:
            return Raised(error)

    async def _spawn(self, leases: Sequence[tuple[Task, Lease]], load_many: AsyncLoadMany | None) -> None:
        refreshing = self._refresh(leases, load_many)
        if self._inline or leases[0][0].profile.inline:
            await refreshing
            return
        background = asyncio.create_task(refreshing)
        self._refreshes.add(background)
        background.add_done_callback(self._refreshes.discard)

    async def _refresh(self, leases: Sequence[tuple[Task, Lease]], load_many: AsyncLoadMany | None) -> None:
        flows = [(task, refresh(task, lease)) for task, lease in leases]
        try:
            await self.run_many(gather(flows, look_up, load_all=load_many is not None), load_many)
        except Exception as error:
            log.warning("background refresh of %s failed: %s", leases[0][0].key.decode(), error, exc_info=error)


async def join(flight: Flight, until: float) -> Any:
    """Wait for a flight until a monotonic time, whichever thread ends it; None when it brought nothing, or not yet."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(_resolve, ended)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits
            log.debug("a flight ended after the event loop that waited for it")

    flight.listen(wake)
    try:
        await asyncio.wait([ended], timeout=max(until - time.monotonic(), 0))
    finally:
        flight.unlisten(wake)
    return flight.landed


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _cancel(tasks: "Sequence[asyncio.Task[Any]] | Any") -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _node(call: Awaitable[T]) -> T | NodeError:
    try:
        return await call
    except NodeError as error:
        return error


def _outcome(found: Any) -> Any:
    return Refused(str(found)) if isinstance(found, NodeError) else found
