"""The end of an event loop: what belongs to it is closed while it still runs."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

Loop = asyncio.AbstractEventLoop


class Shutdown:
    """Closes what a node has in an event loop when that is shut down, by `asyncio.run` for instance.

    An event loop offers no other hook than that it ends the asynchronous generators that were begun in it
    (Python documentation, "loop.shutdown_asyncgens").
    """

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        """`close` closes what belongs to the running loop."""
        self._close = close
        self._begun: dict[Loop, AsyncGenerator[None, None]] = {}

    def watch(self) -> None:
        """Have what the running loop gets closed at its end; once per loop does."""
        loop = asyncio.get_running_loop()
        if loop in self._begun:
            return
        for closed in [known for known in self._begun if known.is_closed()]:
            del self._begun[closed]
        self._begun[loop] = self._until_shutdown()
        try:
            self._begun[loop].__anext__().__await__().send(None)
        except StopIteration:  # it has come to its yield
            return

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close()
