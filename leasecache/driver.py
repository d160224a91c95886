"""The synchronous driver: performs what flows ask for. Everything that waits, waits here."""

import contextvars
import logging
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, TypeVar

from leasecache.background import INLINE, Executor
from leasecache.batch import FirstOf, LoadAll, Raised, Step, Together, gather
from leasecache.errors import NodeError
from leasecache.flow import look_up, refresh
from leasecache.lease import Fill, Lease, Refused
from leasecache.poller import Poller
from leasecache.stores.base import Store
from leasecache.task import Get, Join, Load, Local, Look, Release, Request, Spawn, Steal, Task, measured

log = logging.getLogger("leasecache")
T = TypeVar("T")
LoadMany = Callable[[Sequence[Task]], Sequence[Any]]


class Driver:
    """Runs flows against one store."""

    def __init__(self, store: Store, background: Executor) -> None:
        self.store = store
        self.local = Local(in_threads=True)
        self._poller = Poller(store)
        self._background = background
        self._perform: dict[type[Any], Callable[[Any, Task], Any]] = {
            Get: lambda request, task: self._node(self.store.lease_get, *task.ask(*request)),
            Look: lambda request, task: self._poller.wait({0: request})[0],
            Steal: lambda request, task: self._node(
                self.store.steal, task.key, request.token, request.lease_for, task.profile.mark
            ),
            Fill: lambda request, task: _outcome(self._node(self.store.lease_set, *request)),
            Release: lambda request, task: self.release(request.lease),
            Load: self._load,
            Spawn: lambda request, task: self._spawn([(task, request.lease)], None),
            Join: lambda request, task: request.flight.wait(request.until - time.monotonic()),
        }

    def run(self, flow: Generator[Request, Any, T], task: Task) -> T:
        """Perform the flow's requests until it returns; what a request raises is thrown into it."""
        return self._drive(flow, lambda request: self._perform[type(request)](request, task))

    def run_many(self, steps: Generator[Step, Any, T], load_many: LoadMany | None = None) -> T:
        """Perform the steps of `gather`; `load_many` loads the values of several tasks in one call."""
        return self._drive(steps, lambda step: self._perform_step(step, load_many))

    def release(self, lease: Lease) -> None:
        """Give a lease back; when its node is gone, it runs out by itself."""
        try:
            self.store.release(lease)
        except NodeError as error:
            log.debug("a lease on %s runs out by itself: %s", lease.key.decode(), error)

    @staticmethod
    def _drive(flow: Generator[Any, Any, T], perform: Callable[[Any], Any]) -> T:
        try:
            request = next(flow)
            while True:
                try:
                    result = perform(request)
                except BaseException as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except _Stopped as stopped:
            raise stopped.error from None
        finally:
            flow.close()  # a signal between two requests, which the flow has not seen: what it began must end

    @staticmethod
    def _node(call: Callable[..., T], *args: Any) -> T | NodeError:
        try:
            return call(*args)
        except NodeError as error:
            return error

    @staticmethod
    def _load(request: Load, task: Task) -> Any:
        with measured(task.profile):
            return _loaded(task.load)

    def _perform_step(self, step: Step, load_many: LoadMany | None) -> Any:
        if isinstance(step, LoadAll):
            assert load_many is not None
            with measured(step.tasks[0].profile):
                return _loaded(load_many, step.tasks)
        if isinstance(step, FirstOf):
            return self._first_of(step)
        return self._together(step, load_many)

    def _first_of(self, step: FirstOf) -> dict[int, Any]:
        """Run one loader, if there is one to run; else wait."""
        for position, (task, request) in step.requests.items():
            if isinstance(request, Load):
                return {position: self._attempt(task, request)}
        return self._poller.wait({i: request for i, (_, request) in step.requests.items()})

    def _together(self, step: Together, load_many: LoadMany | None) -> Sequence[Any]:
        if step.kind is Get:
            return self.store.lease_get_many([task.ask(*request) for task, request in step.requests])
        if step.kind is Fill:
            return [_outcome(found) for found in self.store.lease_set_many([fill for _, fill in step.requests])]
        if step.kind is Spawn and load_many is not None:
            self._spawn([(task, request.lease) for task, request in step.requests], load_many)
            return [None] * len(step.requests)
        return [self._attempt(task, request) for task, request in step.requests]

    def _attempt(self, task: Task, request: Request) -> Any:
        try:
            return self._perform[type(request)](request, task)
        except BaseException as error:
            return Raised(error)

    def _spawn(self, leases: Sequence[tuple[Task, Lease]], load_many: LoadMany | None) -> None:
        executor = INLINE if leases[0][0].profile.inline else self._background
        context: Any = contextvars.copy_context()
        run = self._refresh if executor is INLINE else partial(context.run, self._refresh)
        try:
            executor.submit(run, leases, load_many, time.monotonic())
        except Exception as error:  # shut down, or out of threads: the callers have their values
            log.warning("no background refresh of %s: %s", leases[0][0].key.decode(), error, exc_info=error)
            for _, lease in leases:
                self.release(lease)

    def _refresh(self, leases: Sequence[tuple[Task, Lease]], load_many: LoadMany | None, asked: float) -> None:
        task = leases[0][0]
        if time.monotonic() - asked > task.policy.lease_for / 2:
            for _, lease in leases:  # too late to be sure of storing; the next reader wins
                self.release(lease)
            return
        try:
            flows = [(task, refresh(task, lease)) for task, lease in leases]
            self.run_many(gather(flows, look_up, load_all=load_many is not None), load_many)
        except Exception as error:
            log.warning("background refresh of %s failed: %s", task.key.decode(), error, exc_info=error)


class _Stopped(Exception):
    """Carries what a loader has raised through the flow's generator, to which it would mean something else."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def _loaded(load: Callable[..., Any], *args: Any) -> Any:
    try:
        return load(*args)
    except (StopIteration, GeneratorExit) as error:  # a generator cannot raise the one (PEP 479), and ends at the other
        raise _Stopped(error) from None


def _outcome(found: Any) -> Any:
    return Refused(str(found)) if isinstance(found, NodeError) else found
