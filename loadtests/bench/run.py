"""How a side does its work so many times."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import repeat
from typing import Any

from loadtests.bench.site import Site

Run = Callable[[int], Any]  # do the work so many times, and return the last answer


def calls(call: Callable[[], Any]) -> Run:
    """Call a function over and over."""

    def run(count: int) -> Any:
        answer = None
        for _ in repeat(None, count):
            answer = call()
        return answer

    return run


def awaits(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[Any]]) -> Run:
    """Await a coroutine function over and over on an event loop, one call after the other."""
    return lambda count: loop.run_until_complete(_awaited(call, count))


def together(loop: asyncio.AbstractEventLoop, each: Sequence[Callable[[], Awaitable[Any]]]) -> Run:
    """Await coroutine functions over and over, each in a task of its own; their last answers are the answer."""

    async def all_of_them(count: int) -> list[Any]:
        return await asyncio.gather(*(_awaited(call, count) for call in each))

    return lambda count: loop.run_until_complete(all_of_them(count))


async def _awaited(call: Callable[[], Awaitable[Any]], count: int) -> Any:
    answer = None
    for _ in repeat(None, count):
        answer = await call()
    return answer


def event_loop(site: Site) -> asyncio.AbstractEventLoop:
    """Return an event loop that is closed with the site."""
    loop = asyncio.new_event_loop()
    site.at_end(loop.close)
    return loop
