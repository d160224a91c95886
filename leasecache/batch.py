"""Many calls at once: their flows run in step, so that one pipeline, one load and one wait serve them all.

What a flow may do is decided by the flow alone; here is only decided which requests of several flows go together.
"""

import dataclasses
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from leasecache.flow import Flow
from leasecache.lease import Fill
from leasecache.task import Entry, Get, Join, Load, Look, Release, Request, Spawn, Steal, Task

QUICK = 0.001  # s: a fill does not wait for further loads that take longer than that


class Together(NamedTuple):
    """Perform requests of one kind, pipelined; resumed with their results in order."""

    kind: type[Any]
    requests: Sequence[tuple[Task, Any]]


class LoadAll(NamedTuple):
    """Load for several tasks in one call; resumed with their values in order."""

    tasks: Sequence[Task]


class FirstOf(NamedTuple):
    """Wait until at least one of these is done; resumed with {position: result} of those that are."""

    requests: dict[int, tuple[Task, Any]]


class Raised(NamedTuple):
    """Instead of a result: what the request raised."""

    error: BaseException


Step = Together | LoadAll | FirstOf


class _Unbegun(BaseException):
    """Thrown into a flow whose load has waited too long for its turn: it gives its lease back."""


class _Abandoned(BaseException):
    """Thrown into a flow whose batch has failed: it gives its lease back."""


def gather(
    flows: Iterable[tuple[Task, Flow]],
    again: Callable[[Task], Flow],
    *,
    deferred: Iterable[tuple[Task, Flow]] = (),
    load_all: bool = False,
    at_once: int = 1,
    queued: set[bytes] | None = None,
) -> Generator[Step, Any, list[Entry]]:
    """Run flows in step and return their entries in order; the first that raises ends them all, leases given back.

    `deferred` flows begin when all loads are done: while a thread loads it cannot wait for others, and nobody shall
    wait for it to do so. `load_all`: one call loads for everyone who has to load. Otherwise `at_once` loads run at a
    time, and a lease whose load has not begun within lease_for / 2 is given back; its task starts `again` later.
    `queued` always has the keys whose loads have not begun.
    """
    batch = _Batch(again, load_all, at_once, set() if queued is None else queued)
    try:
        batch.start(flows)
        batch.defer(deferred)
        while (step := batch.next()) is not None:
            batch.resume(step, (yield step))
    except GeneratorExit:
        batch.close()
        raise
    except BaseException:
        yield from batch.abandon()
        raise
    return [batch.entries[position] for position in sorted(batch.entries)]


class _Run:
    """One flow, and the request that it waits for."""

    __slots__ = ("flow", "position", "request", "since", "task")

    def __init__(self, position: int, task: Task, flow: Flow) -> None:
        self.position = position
        self.task = task
        self.flow = flow
        self.request: Request | None = None
        self.since = 0.0  # monotonic s when it made its request


class _Batch:
    """The flows of one batch."""

    def __init__(self, again: Callable[[Task], Flow], load_all: bool, at_once: int, queued: set[bytes]) -> None:
        self.entries: dict[int, Entry] = {}
        self._again = again
        self._load_all = load_all
        self._at_once = at_once
        self._queued = queued
        self._runs: dict[int, _Run] = {}
        self._asked: defaultdict[type[Any], dict[int, _Run]] = defaultdict(dict)  # by request, the oldest first
        self._deferred: list[_Run] = []
        self._later: deque[_Run] = deque()  # gave their leases back and have to begin anew, one at a time
        self._stale: dict[int, tuple[_Run, float]] = {}  # served stale, and until when (monotonic s) that is allowed
        self._loading: dict[int, _Run] = {}
        self._failure: BaseException | None = None

    def start(self, flows: Iterable[tuple[Task, Flow]]) -> None:
        """Take each flow to its first request."""
        self._begin([_Run(position, task, flow) for position, (task, flow) in enumerate(flows)])

    def defer(self, flows: Iterable[tuple[Task, Flow]]) -> None:
        """Keep flows for when no load is left."""
        begun = len(self._runs) + len(self.entries)
        self._deferred = [_Run(begun + i, task, flow) for i, (task, flow) in enumerate(flows)]

    def next(self) -> Step | None:
        """Return what to do next, None when all flows have ended: quick things first, then loads, then waiting."""
        if not self._runs and not self._later and not self._deferred:
            self._expire()
            if not self._later:
                return None
        self._give_back()
        for kind in (Release, Spawn, Get, Steal):
            if runs := self._asking(kind):
                return Together(kind, [(run.task, run.request) for run in runs])
        loads = self._asked[Load]
        if self._asked[Fill] and not (loads and self._is_quick()):
            return Together(Fill, [(run.task, run.request) for run in self._asking(Fill)])
        if not loads and (self._deferred or self._later):
            self._begin_more()
            return self.next()
        if loads and self._load_all:
            return LoadAll([run.task for run in loads.values()])
        return self._first_of()

    def resume(self, step: Step, results: Any) -> None:
        """Go on with what a step has brought."""
        if isinstance(step, FirstOf):
            for position, result in results.items():
                self._loading.pop(position, None)
                self._resume(self._runs[position], result)
        else:
            kind = Load if isinstance(step, LoadAll) else step.kind
            for run, result in zip(self._asking(kind), results, strict=True):
                self._resume(run, result)
        self._check()

    def abandon(self) -> Generator[Step, Any, None]:
        """Store what has been loaded, give back every lease whose value has not, and end."""
        if fills := self._asking(Fill):
            yield Together(Fill, [(run.task, run.request) for run in fills])
        releases = [(run.task, release) for run in self._runs.values() if (release := _giving_back(run)) is not None]
        if releases:
            yield Together(Release, releases)
        self.close()

    def close(self) -> None:
        """End the flows."""
        for run in (*self._runs.values(), *self._deferred):
            run.flow.close()

    def _first_of(self) -> FirstOf:
        for run in self._unbegun():
            if len(self._loading) == self._at_once:
                break
            self._loading[run.position] = run
            self._queued.discard(run.task.key)
        waiting = [*self._loading.values(), *self._asking(Look), *self._asking(Join)]
        return FirstOf({run.position: (run.task, run.request) for run in waiting})

    def _asking(self, kind: type[Any]) -> list[_Run]:
        return list(self._asked[kind].values())

    def _unbegun(self) -> Iterator[_Run]:
        """Yield those whose loads have not begun, the longest waiting first."""
        return (run for run in self._asked[Load].values() if run.position not in self._loading)

    def _is_quick(self) -> bool:
        """Tell whether the loads that follow in this thread take no time; those of tasks may wait for these fills."""
        fill = next(iter(self._asked[Fill].values()))
        return self._at_once == 1 and not self._load_all and fill.task.profile.load_time.expected < QUICK

    def _give_back(self) -> None:
        """Let go of the leases whose loads cannot begin in time to be sure of storing."""
        if self._load_all:
            return
        now = time.monotonic()
        late = itertools.takewhile(lambda run: now - run.since > run.task.policy.lease_for / 2, self._unbegun())
        for run in list(late):
            self._advance(run, lambda run=run: run.flow.throw(_Unbegun()))  # type: ignore[misc]

    def _begin_more(self) -> None:
        if self._deferred:
            runs, self._deferred = self._deferred, []
        else:
            runs = [self._later.popleft()]
            runs[0].task = dataclasses.replace(runs[0].task, began=time.monotonic())
            runs[0].flow = self._again(runs[0].task)
        self._begin(runs)

    def _begin(self, runs: Sequence[_Run]) -> None:
        self._runs.update((run.position, run) for run in runs)
        for run in runs:
            self._advance(run, lambda run=run: next(run.flow))  # type: ignore[misc]
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _end(self, run: _Run, entry: Entry) -> None:
        self.entries[run.position] = entry
        del self._runs[run.position]
        if entry.state == "stale" and entry.expires_in is not None:
            self._stale[run.position] = run, time.monotonic() + entry.expires_in

    def _expire(self) -> None:
        """Begin anew with what may not be served any more: the loads of other keys have taken longer than it had."""
        now = time.monotonic()
        over = [position for position, (_, until) in self._stale.items() if until < now]
        self._later.extend(self._stale.pop(position)[0] for position in over)

    def _resume(self, run: _Run, result: Any) -> None:
        if isinstance(result, Raised):
            self._advance(run, lambda: run.flow.throw(result.error))
        else:
            self._advance(run, lambda: run.flow.send(result))

    def _advance(self, run: _Run, step: Callable[[], Request]) -> None:
        self._asked[type(run.request)].pop(run.position, None)
        self._queued.discard(run.task.key)
        try:
            run.request = step()
            run.since = time.monotonic()
            self._asked[type(run.request)][run.position] = run
            if isinstance(run.request, Load):
                self._queued.add(run.task.key)
        except StopIteration as stop:
            self._end(run, stop.value)
        except _Unbegun:
            del self._runs[run.position]
            self._later.append(run)
        except BaseException as error:  # raised when the others have had their results: a lease may be among them
            del self._runs[run.position]
            self._failure = self._failure or error


def _giving_back(run: _Run) -> Release | None:
    """Return what gives back the lease that an abandoned flow holds, if it does."""
    if isinstance(run.request, Release):
        return run.request
    if isinstance(run.request, Spawn):
        return Release(run.request.lease)
    if not isinstance(run.request, Load):
        return None
    try:
        released = run.flow.throw(_Abandoned())
    except _Abandoned:
        return None  # it loaded without a lease
    return released if isinstance(released, Release) else None
