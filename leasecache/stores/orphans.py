"""Exchanges that may win a lease go on when their caller is cancelled; what they then win is given back."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from leasecache.errors import NodeError
from leasecache.lease import Lease

T = TypeVar("T")
Release = Callable[[Sequence[Lease]], Awaitable[None]]


class Orphans:
    """The work of cancelled callers that has not ended yet, each with the task that gives back what it wins."""

    def __init__(self, limit: int, release: Release) -> None:
        """`limit` at most go on in one event loop, the others are cancelled: their leases run out by themselves."""
        self._limit = limit
        self._release = release
        self._tasks: dict[asyncio.Task[Any], asyncio.Task[None]] = {}

    @property
    def here(self) -> bool:
        """Whether the caller of the current task's work is gone."""
        return bool(self._tasks) and asyncio.current_task() in self._tasks

    async def see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work comes to; it goes on when the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        try:
            await asyncio.wait((task,))
        except BaseException:
            self._adopt(task)
            raise
        return task.result()

    async def ended(self) -> None:
        """Wait for those of this event loop."""
        mine = self._of(asyncio.get_running_loop())
        if mine:
            await asyncio.wait(mine)

    def _adopt(self, task: "asyncio.Task[Any]") -> None:
        for known in [known for known in self._tasks if known.get_loop().is_closed()]:
            del self._tasks[known]
        loop = task.get_loop()
        _die_quietly(task)
        if loop.is_closed():  # a coroutine is thrown away that nobody can wake any more
            return
        if len(self._of(loop)) >= self._limit:
            task.cancel()
            return
        self._tasks[task] = loop.create_task(self._give_back(task))
        _die_quietly(self._tasks[task])
        self._tasks[task].add_done_callback(lambda _: self._tasks.pop(task, None))

    async def _give_back(self, task: "asyncio.Task[Any]") -> None:
        await asyncio.wait((task,))
        if task.cancelled() or task.exception() is not None:
            return
        result = task.result()
        won = [answer for answer in (result if isinstance(result, list) else [result]) if isinstance(answer, Lease)]
        try:
            await self._release(won)
        except NodeError:  # then they run out by themselves
            return

    def _of(self, loop: asyncio.AbstractEventLoop) -> "list[asyncio.Task[None]]":
        return [back for task, back in self._tasks.items() if task.get_loop() is loop]


def _die_quietly(task: "asyncio.Task[Any]") -> None:
    """Have asyncio say nothing when the loop is closed before the task has ended, as it does for those of `gather`."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
