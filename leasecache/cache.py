"""The synchronous cache: what an application imports."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, ParamSpec, Protocol, TypeVar

from leasecache.background import INLINE, Background, Executor
from leasecache.codecs import RAW_FLAGS
from leasecache.config import check_guard, open_store, parse_url
from leasecache.decorator import CachedFunction, decorate, plain
from leasecache.driver import Driver
from leasecache.errors import ConfigError, DefinitionError
from leasecache.function import CachedCore
from leasecache.keys import check_key
from leasecache.lease import Answer, Lease, Refused, Stored
from leasecache.policy import LEASE_MOST, Policy
from leasecache.rules import Row, RuleSet

P = ParamSpec("P")
R = TypeVar("R")

_POOL: Any = object()  # "four daemon threads", the default of Cache(background=…)


class UnguardedWarning(UserWarning):
    """depends_on without a guard: a lost invalidation is noticed only when the ttl is over."""


class Bindable(Protocol):
    """What `Cache.counter` takes: `leasecache.counters.counter(...)`."""

    def bind(self, cache: Any, **options: Any) -> Any:
        """Return a cached function that reads the counter."""


class Cache:
    """Functions cached under leases, in memcached or in memory.

    `background` runs refreshes: an executor, or None for the caller's own thread; default four daemon threads.
    `in_transaction` is asked before each call; while it returns true nothing is served and nothing filled.
    """

    def __init__(
        self, *, background: Executor | None = _POOL, in_transaction: Callable[[], bool] | None = None
    ) -> None:
        self._background: Executor = Background() if background is _POOL else background or INLINE
        self._in_transaction = in_transaction
        self._bypassed: ContextVar[bool] = ContextVar("leasecache_bypass", default=False)
        self.active: Driver | None = None
        self._warn_unguarded = False
        self._functions: list[CachedCore] = []

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        guard: str | None = None,
        background: Executor | None = _POOL,
        in_transaction: Callable[[], bool] | None = None,
    ) -> "Cache":
        """Return a cache on `url`; it opens nothing until first used. Raises ConfigError."""
        cache = cls(background=background, in_transaction=in_transaction)
        cache.configure(url, guard=guard)
        return cache

    def configure(self, url: str, *, guard: str | None = None) -> None:
        """Set or change the URL, at application start. Raises ConfigError naming the fault and the fix."""
        parsed = parse_url(url)
        check_guard(guard)
        store = open_store(url)
        if self.active is not None:
            self.active.store.close()
        self.active = Driver(store, self._background)
        self._warn_unguarded = parsed.scheme == "memcached" and (guard or parsed.guard) is None
        self._warn_once()

    def cached(
        self,
        template: str,
        *,
        policy: Policy | None = None,
        depends_on: Row | Sequence[Row] | None = None,
        ignore: Sequence[str] = (),
        **fields: Any,
    ) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
        """Cache a function under keys of `template`; keyword arguments are the fields of `Policy`, or give `policy`.

        Raises DefinitionError when the decorator runs, naming the fault and the fix.
        """
        chosen = _policy(policy, fields)

        def decorator(fn: Callable[P, R]) -> CachedFunction[P, R]:
            inner = plain(fn)
            if not hasattr(inner, "__qualname__") or not hasattr(inner, "__annotations__"):
                raise DefinitionError(f"{inner!r} is not a function written with def; wrap it in one to cache it")
            if inspect.iscoroutinefunction(inner):
                raise DefinitionError(f"{inner.__qualname__} is async; Cache caches plain functions")
            core = CachedCore(inner, template, chosen, runtime=self, depends_on=depends_on, ignore=ignore)
            self._register(core)
            return decorate(fn, core)

        return decorator

    def counter(self, counter: "Bindable", **options: Any) -> CachedFunction[..., int]:
        """Return a cached read of a counter; options are `connect`, `key_type` and the fields of `Policy`."""
        bound: CachedFunction[..., int] = counter.bind(self, **options)
        return bound

    @property
    def rules(self) -> RuleSet:
        """The invalidation rules of all functions with `depends_on`, for the daemon."""
        rules = tuple(rule for core in self._functions for rule in core.rules)
        return RuleSet(namespace=self.active.store.namespace if self.active else None, rules=rules)

    @contextlib.contextmanager
    def bypass(self) -> Iterator[None]:
        """Neither serve nor fill in this context; for a transaction that has written."""
        token = self._bypassed.set(True)
        try:
            yield
        finally:
            self._bypassed.reset(token)

    @contextlib.contextmanager
    def override(self, url: str) -> Iterator[None]:
        """Use another store for a while, such as `memory://` in a test; then the configured one again."""
        replaced = self.active
        store = open_store(url)
        self.active = Driver(store, self._background)
        try:
            yield
        finally:
            self.active = replaced
            store.close()

    def driver(self) -> Driver:
        """Return the driver of the configured store. Raises ConfigError before `configure`."""
        if self.active is None:
            raise ConfigError("this cache has no URL yet; call cache.configure('memcached://host:port') at start")
        return self.active

    def bypassed(self) -> bool:
        """Tell whether calls in this context must neither be served nor fill."""
        return self._bypassed.get() or (self._in_transaction is not None and self._in_transaction())

    def lease_get(self, key: bytes, *, lease_for: float = 10) -> Answer:
        """Return Hit, Stale, Wait or Lease for a key from `.key()`; a lease lives `lease_for` s. Raises NodeError."""
        check_key(key)
        if not 1 <= lease_for <= LEASE_MOST:
            raise ConfigError(f"lease_for={lease_for!r} must be from 1 s to {LEASE_MOST} s")
        return self.driver().store.lease_get(key, lease_for)

    def lease_set(self, lease: Lease, value: bytes, ttl: float) -> Stored | Refused:
        """Store `value` for `ttl` s under a lease that is still good. Raises NodeError."""
        if not isinstance(value, bytes):
            raise TypeError(f"a value is bytes, not {type(value).__name__}")
        return self.driver().store.lease_set(lease, RAW_FLAGS, value, ttl)

    def release(self, lease: Lease) -> None:
        """Give a lease back, so that the next reader wins at once. Raises NodeError."""
        self.driver().store.release(lease)

    def invalidate(self, *keys: bytes, stale_for: float = 0) -> None:
        """Void leases on `keys`; drop their values, or leave them stale for at most `stale_for` s.

        Raises NodeError when a node did not acknowledge; repeating is safe.
        """
        for key in keys:
            check_key(key)
        self.driver().store.invalidate(keys, stale_for)

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

    def _register(self, core: CachedCore) -> None:
        overlapping = [other for other in self._functions if other.template.overlaps(core.template)]
        for other in overlapping:
            if other.name != core.name:
                raise DefinitionError(
                    f"{core.name}: template {core.template.text!r} can render a key of {other.name} "
                    f"({other.template.text!r}); give one of them another prefix"
                )
        # Of the same name and template: defined again. Of the same name alone: another product of one factory.
        self._functions = [other for other in self._functions if other not in overlapping] + [core]
        self._warn_once()

    def _warn_once(self) -> None:
        if self._warn_unguarded and any(core.rules for core in self._functions):
            self._warn_unguarded = False
            warnings.warn(
                "depends_on without a guard: if an invalidation is lost, a value can be wrong until its ttl is over; "
                "pass guard='none' to say that this is understood",
                UnguardedWarning,
                stacklevel=4,
            )


def _policy(policy: Policy | None, fields: dict[str, Any]) -> Policy:
    if policy is not None:
        if fields:
            raise DefinitionError(f"give either policy=… or its fields, not both ({', '.join(fields)})")
        return policy
    try:
        return Policy(**fields)
    except TypeError as error:
        if isinstance(error, DefinitionError):
            raise
        known = ", ".join(Policy.__dataclass_fields__)
        raise DefinitionError(f"cached(): {str(error).replace('Policy.__init__() ', '')}; fields are {known}") from None
