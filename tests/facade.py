"""`AsyncCache` under the names of `Cache`: an event loop in a thread of its own, so that one suite tests both.

Loaders of a suite are plain functions; here they run in threads, as tasks of the loop.
"""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leasecache import AsyncCache

THREADS = 64  # loaders that a test may hold up at once


class Loop:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(THREADS))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await `call()` in a task of the loop that has the caller's context variables."""

        async def run() -> Any:
            return await call()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def close(self) -> None:
        """Stop the loop once its threads have ended."""
        self.run(self._loop.shutdown_default_executor)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingFunction:
    """A function of an `AsyncCache`, each of whose methods returns what it would be awaited for."""

    def __init__(self, function: Any, loop: Loop) -> None:
        self._function = function
        self._loop = loop
        self._self_core = function._self_core
        self.key = function.key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._loop.run(lambda: self._function(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._function, name)
        return lambda *args, **kwargs: self._loop.run(lambda: method(*args, **kwargs))


class BlockingCache:
    """An `AsyncCache` whose coroutines run to their end in a loop of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self.cache = AsyncCache.from_url(url, **options)
        self.loop = Loop()
        self.bypass = self.cache.bypass
        self.override = self.cache.override
        self.driver = self.cache.driver

    def cached(self, template: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        """Cache a plain function, run in a thread."""
        return self._decorator(self.cache.cached(template, **options))

    def cached_many(self, template: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        """Cache a plain function of many values, run in a thread."""
        return self._decorator(self.cache.cached_many(template, **options))

    def close(self) -> None:
        """Close the cache and its loop."""
        self.loop.run(self.cache.aclose)
        self.loop.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.cache, name)
        return lambda *args, **kwargs: self.loop.run(lambda: method(*args, **kwargs))

    def __enter__(self) -> "BlockingCache":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _decorator(self, decorator: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Any]:
        def decorate(fn: Callable[..., Any]) -> BlockingFunction:
            @functools.wraps(fn)
            async def load(*args: Any, **kwargs: Any) -> Any:
                return await asyncio.to_thread(fn, *args, **kwargs)

            return BlockingFunction(decorator(load), self.loop)

        return decorate
