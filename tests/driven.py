"""An `AsyncStore` under the names of `Store`, so that one contract is held against both."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from leasecache.stores.base import AsyncStore


class DrivenStore:
    """Runs each call of an asynchronous store to its end on an event loop of its own."""

    def __init__(self, store: AsyncStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self.namespace = store.namespace
        self.nodes = store.nodes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)
        return lambda *args: self._run(method, *args)

    def reader(self, *terms: Any) -> Callable[[bytes], Any]:
        """Return the store's reader; its awaitable is made and awaited on the loop."""
        read = self._store.reader(*terms)
        return lambda key: self._run(read, key)

    def batch_reader(self, *terms: Any) -> Callable[[Sequence[bytes]], Any]:
        """Return the store's reader of many keys."""
        read = self._store.batch_reader(*terms)
        return lambda keys: self._run(read, keys)

    def close(self) -> None:
        """Close the store and the loop."""
        self._run(self._store.aclose)
        self._loop.close()

    def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        async def run() -> Any:
            return await call(*args)

        return self._loop.run_until_complete(run())
