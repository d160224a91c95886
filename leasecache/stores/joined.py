"""Work of an event loop that is done once for all who wait for it."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from leasecache.errors import LeasecacheError

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop


async def joined(tasks: dict[Loop, "asyncio.Task[T]"], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Wait for this loop's task, begun by whoever comes first. A cancelled caller does not end it: others wait, too."""
    loop = asyncio.get_running_loop()
    if loop not in tasks:
        tasks[loop] = loop.create_task(work())
        tasks[loop].add_done_callback(partial(_done, tasks))
    try:
        return await asyncio.shield(tasks[loop])
    except LeasecacheError as error:
        raise type(error)(*error.args) from error  # one exception per caller


def _done(tasks: dict[Loop, "asyncio.Task[T]"], task: "asyncio.Task[T]") -> None:
    tasks.pop(task.get_loop(), None)
    if not task.cancelled():
        task.exception()  # seen, though every caller may have been cancelled meanwhile
