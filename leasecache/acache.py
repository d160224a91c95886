"""The asynchronous cache: the names of `Cache`, with everything that does I/O awaited."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from leasecache.acalls import AsyncCachedCore
from leasecache.adriver import AsyncDriver
from leasecache.amany import AsyncCachedManyCore
from leasecache.cache import Bindable
from leasecache.codecs import RAW_FLAGS
from leasecache.config import open_async_store
from leasecache.lease import Answer, Lease, Refused, Stored
from leasecache.metrics import Stats, snapshot
from leasecache.policy import Policy, PolicyFields
from leasecache.registry import Registry, check_fill, check_given, check_invalidation, check_lease, chosen, unmarked
from leasecache.rules import Row
from leasecache.surface import AsyncCachedFunction, AsyncCachedManyFunction

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")

_TASKS: Any = object()  # "tasks of the caller's event loop", the default of AsyncCache(background=…)


class AsyncCache(Registry[AsyncDriver]):
    """Coroutine functions cached under leases, in memcached, in Redis or in memory.

    Connections belong to the event loop that uses them. `background=None` refreshes in the winner itself; default a
    task of its event loop. `in_transaction` is asked before each call; while it returns true nothing is served and
    nothing filled.
    """

    _asynchronous = True
    _single = AsyncCachedCore
    _batch = AsyncCachedManyCore

    def __init__(self, *, background: None = _TASKS, in_transaction: Callable[[], bool] | None = None) -> None:
        super().__init__(in_transaction)
        self._inline = background is None
        self._retired: list[AsyncDriver] = []

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        guard: str | None = None,
        background: None = _TASKS,
        in_transaction: Callable[[], bool] | None = None,
    ) -> "AsyncCache":
        """Return a cache on `url`; it opens nothing until first used. Raises ConfigError.

        `guard`, or `?guard=` in the URL: "daemon" = functions with `depends_on` use a node only while the invalidation
        daemon vouches for it; "none" = a lost invalidation leaves an old value until its ttl is over.
        """
        cache = cls(background=background, in_transaction=in_transaction)
        cache._configure(url, guard)
        return cache

    def cached(
        self,
        template: str,
        *,
        policy: Policy | None = None,
        depends_on: Row | Sequence[Row] | None = None,
        ignore: Sequence[str] = (),
        **fields: "Unpack[PolicyFields]",
    ) -> Callable[[Callable[P, Awaitable[R]]], AsyncCachedFunction[P, R]]:
        """Cache a coroutine function under keys of `template`; see `Cache.cached`."""
        policy = chosen(policy, fields)

        def decorator(fn: Callable[P, Awaitable[R]]) -> AsyncCachedFunction[P, R]:
            cached: AsyncCachedFunction[P, R] = self._declare(fn, template, policy, depends_on, ignore)
            return cached

        return decorator

    def cached_many(
        self,
        template: str,
        *,
        policy: Policy | None = None,
        depends_on: Row | Sequence[Row] | None = None,
        ignore: Sequence[str] = (),
        **fields: "Unpack[PolicyFields]",
    ) -> Callable[[Callable[P, Awaitable[Mapping[K, V]]]], AsyncCachedManyFunction[P, K, V]]:
        """Cache a coroutine function that takes a batch and returns {argument: value}; see `Cache.cached_many`."""
        policy = chosen(policy, fields)

        def decorator(fn: Callable[P, Awaitable[Mapping[K, V]]]) -> AsyncCachedManyFunction[P, K, V]:
            cached: AsyncCachedManyFunction[P, K, V] = self._declare(
                fn, template, policy, depends_on, ignore, batch=True
            )
            return cached

        return decorator

    def counter(self, counter: Bindable, **options: Any) -> AsyncCachedFunction[..., int]:
        """Return a cached read of a counter, run in a thread; options are those of `Cache.counter`."""
        bound: AsyncCachedFunction[..., int] = counter.bind(_Threaded(self), **options)
        return bound

    def stats(self) -> Stats:
        """Return what has happened since this process started: per function, and per node."""
        return snapshot(self._functions, self.driver().store)

    async def lease_get(self, key: bytes, *, lease_for: float = 10) -> Answer:
        """Return Hit, Stale, Wait or Lease for a key from `.key()`; a lease lives `lease_for` s. Raises NodeError."""
        check_lease(key, lease_for)
        return unmarked(key, await self.driver().store.lease_get(key, lease_for))

    async def lease_set(self, lease: Lease, value: bytes, ttl: float) -> Stored | Refused:
        """Store `value` for `ttl` s under a lease that is still good. Raises NodeError."""
        check_fill(lease, value, ttl)
        return await self.driver().store.lease_set(lease, RAW_FLAGS, value, ttl)

    async def release(self, lease: Lease) -> None:
        """Give a lease back, so that the next reader wins at once. Raises NodeError."""
        check_given(lease)
        await self.driver().store.release(lease)

    async def invalidate(self, *keys: bytes, stale_for: float = 0) -> None:
        """Void leases on `keys`; drop their values, or leave them stale for at most `stale_for` s.

        Raises NodeError when a node did not acknowledge; repeating is safe.
        """
        check_invalidation(keys, stale_for)
        await self.driver().store.invalidate(keys, stale_for)

    async def clear(self) -> None:
        """Let no value be served again that is stored now, by a new generation on every node; empty `memory://`.

        Values of functions without `depends_on` stay: only guarded keys carry a generation. Raises ConfigError without
        guard="daemon", and NodeError when a node has no guard record or did not take the new one; repeating is safe.
        """
        await self.driver().store.clear()

    async def aclose(self) -> None:
        """Close the connections of this event loop and end its refreshes; the cache can be used again."""
        retired, self._retired = self._retired, []
        for driver in (*retired, *([self.active] if self.active is not None else [])):
            await driver.aclose()
            await driver.store.aclose()

    async def __aenter__(self) -> "AsyncCache":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _open(self, url: str, guarded: bool) -> AsyncDriver:
        return AsyncDriver(open_async_store(url, guarded=guarded), self._inline)

    def _retire(self, driver: AsyncDriver) -> None:
        self._retired.append(driver)  # closing waits, so `aclose` does it


class _Threaded:
    """A cache whose plain functions run in threads, so that psycopg's blocking connections do not hold up the loop."""

    def __init__(self, cache: AsyncCache) -> None:
        self._cache = cache

    def cached(self, template: str, **options: Any) -> Callable[[Callable[[Any], int]], Any]:
        """Cache a plain function of one parameter as a coroutine function."""

        def decorator(fn: Callable[[Any], int]) -> Any:
            async def load(key: Any) -> int:
                return await asyncio.to_thread(fn, key)

            load.__name__, load.__qualname__, load.__annotations__ = fn.__name__, fn.__qualname__, fn.__annotations__
            return self._cache.cached(template, **options)(load)

        return decorator
