"""Waiting tasks of one event loop: their looks go together, in one batch per node."""

import asyncio
import contextlib
import time

from leasecache.errors import NodeError
from leasecache.lease import Lease
from leasecache.schedule import Schedule
from leasecache.stores.base import AsyncStore
from leasecache.stores.within import within
from leasecache.task import Look


class AsyncPoller:
    """Serves the tasks of one event loop that wait for other holders' leases in one store."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._schedule = Schedule()
        self._waiting: dict[int, asyncio.Future[None]] = {}  # of looks
        self._changed = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    async def wait(self, look: Look) -> object:
        """Return what settles the look, or at its end the last answer or None."""
        future = self._waiting[id(look)] = asyncio.get_running_loop().create_future()
        self._schedule.add(look)
        self._changed.set()
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())
        try:
            await asyncio.wait([future], timeout=max(look.until - time.monotonic(), 0))
            if future.done():
                future.result()
            return look.answer
        except asyncio.CancelledError:
            if isinstance(look.answer, Lease):
                await self._release(look.answer)
            raise
        finally:
            self._schedule.discard(look)
            del self._waiting[id(look)]
            self._changed.set()  # the sender may end

    async def _send_all(self) -> None:
        """Send what falls due until nobody waits any more."""
        while self._schedule:
            self._changed.clear()
            left = self._schedule.earliest() - time.monotonic()
            if left > 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(left, self._changed.wait())
                continue
            await self._send()

    async def _send(self) -> None:
        looks = self._schedule.due(time.monotonic())
        try:
            answers = await self._store.lease_get_many([look.ask for look in looks])
        except Exception as error:  # a node that is unfit: everyone who waits for it shall know
            self._fail(looks, error)
            return
        settled, unwanted = self._schedule.answer(looks, answers, time.monotonic())
        for look in settled:
            if not (future := self._waiting[id(look)]).done():
                future.set_result(None)
        for lease in unwanted:
            await self._release(lease)

    def _fail(self, looks: list[Look], error: Exception) -> None:
        for look in looks:
            self._schedule.discard(look)
            future = self._waiting.get(id(look))
            if future is not None and not future.done():
                future.set_exception(error)

    async def _release(self, lease: Lease) -> None:
        with contextlib.suppress(NodeError):  # it runs out by itself
            await self._store.release(lease)
