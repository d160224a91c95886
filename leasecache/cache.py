"""The synchronous cache: what an application imports."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from leasecache.background import INLINE, Background, Executor
from leasecache.calls import CachedCore
from leasecache.codecs import RAW_FLAGS
from leasecache.config import open_store
from leasecache.driver import Driver
from leasecache.errors import ConfigError
from leasecache.lease import Answer, Lease, Refused, Stored
from leasecache.many import CachedManyCore
from leasecache.metrics import Stats, snapshot
from leasecache.policy import Policy, PolicyFields
from leasecache.registry import Registry, check_fill, check_given, check_invalidation, check_lease, chosen, unmarked
from leasecache.rules import Row
from leasecache.surface import CachedFunction, CachedManyFunction

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")

_POOL: Any = object()  # "four daemon threads", the default of Cache(background=…)


class Bindable(Protocol):
    """What `Cache.counter` takes: `leasecache.counters.counter(...)`."""

    def bind(self, cache: Any, **options: Any) -> Any:
        """Return a cached function that reads the counter."""


class Cache(Registry[Driver]):
    """Functions cached under leases, in memcached, in Redis or in memory.

    `background` runs refreshes: an executor, or None for the caller's own thread; default four daemon threads.
    `in_transaction` is asked before each call; while it returns true nothing is served and nothing filled.
    """

    _asynchronous = False
    _single = CachedCore
    _batch = CachedManyCore

    def __init__(
        self, *, background: Executor | None = _POOL, in_transaction: Callable[[], bool] | None = None
    ) -> None:
        super().__init__(in_transaction)
        if background is not None and background is not _POOL and not callable(getattr(background, "submit", None)):
            raise ConfigError(f"background={background!r} must be an executor, with submit(), or None")
        self._background: Executor = Background() if background is _POOL else background or INLINE

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        guard: str | None = None,
        background: Executor | None = _POOL,
        in_transaction: Callable[[], bool] | None = None,
    ) -> "Cache":
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
    ) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
        """Cache a function under keys of `template`; keyword arguments are the fields of `Policy`, or give `policy`.

        Raises DefinitionError when the decorator runs, naming the fault and the fix.
        """
        policy = chosen(policy, fields)

        def decorator(fn: Callable[P, R]) -> CachedFunction[P, R]:
            cached: CachedFunction[P, R] = self._declare(fn, template, policy, depends_on, ignore)
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
    ) -> Callable[[Callable[P, Mapping[K, V]]], CachedManyFunction[P, K, V]]:
        """Cache a function that takes a batch and returns {argument: value}; `template` has one field, its element.

        What the function leaves out is cached as absent. Otherwise like `cached`.
        """
        policy = chosen(policy, fields)

        def decorator(fn: Callable[P, Mapping[K, V]]) -> CachedManyFunction[P, K, V]:
            cached: CachedManyFunction[P, K, V] = self._declare(fn, template, policy, depends_on, ignore, batch=True)
            return cached

        return decorator

    def counter(self, counter: "Bindable", **options: Any) -> CachedFunction[..., int]:
        """Return a cached read of a counter; options are `connect`, `key_type` and the fields of `Policy`."""
        bound: CachedFunction[..., int] = counter.bind(self, **options)
        return bound

    def stats(self) -> Stats:
        """Return what has happened since this process started: per function, and per node."""
        return snapshot(self._functions, self.driver().store)

    def lease_get(self, key: bytes, *, lease_for: float = 10) -> Answer:
        """Return Hit, Stale, Wait or Lease for a key from `.key()`; a lease lives `lease_for` s. Raises NodeError."""
        check_lease(key, lease_for)
        return unmarked(key, self.driver().store.lease_get(key, lease_for))

    def lease_set(self, lease: Lease, value: bytes, ttl: float) -> Stored | Refused:
        """Store `value` for `ttl` s under a lease that is still good. Raises NodeError."""
        check_fill(lease, value, ttl)
        return self.driver().store.lease_set(lease, RAW_FLAGS, value, ttl)

    def release(self, lease: Lease) -> None:
        """Give a lease back, so that the next reader wins at once. Raises NodeError."""
        check_given(lease)
        self.driver().store.release(lease)

    def invalidate(self, *keys: bytes, stale_for: float = 0) -> None:
        """Void leases on `keys`; drop their values, or leave them stale for at most `stale_for` s.

        Raises NodeError when a node did not acknowledge; repeating is safe.
        """
        check_invalidation(keys, stale_for)
        self.driver().store.invalidate(keys, stale_for)

    def clear(self) -> None:
        """Let no value be served again that is stored now, by a new generation on every node; empty `memory://`.

        Values of functions without `depends_on` stay: only guarded keys carry a generation. Raises ConfigError without
        guard="daemon", and NodeError when a node has no guard record or did not take the new one; repeating is safe.
        """
        self.driver().store.clear()

    def close(self) -> None:
        """Close connections and end the threads that refresh; the cache can be used again."""
        if isinstance(self._background, Background):
            self._background.close()
        if self.active is not None:
            self.active.store.close()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self, url: str, guarded: bool) -> Driver:
        return Driver(open_store(url, guarded=guarded), self._background)

    def _retire(self, driver: Driver) -> None:
        driver.store.close()
