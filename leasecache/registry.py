"""What a cache is without its store, synchronous or not: its functions, its configuration, when to step aside."""

import contextlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

from leasecache._accel import Bypass
from leasecache.codecs import UNCACHEABLE
from leasecache.config import check_guard, parse_url
from leasecache.decorator import decorate, plain
from leasecache.errors import ConfigError, DefinitionError
from leasecache.function import AnyDriver, FunctionCore, Loader
from leasecache.keys import check_key
from leasecache.lease import Answer, Lease, Wait
from leasecache.messages import CommitMessage
from leasecache.policy import LEASE_MOST, Policy, at_least
from leasecache.rules import Row, RuleSet
from leasecache.signature import BatchSignature, KeySignature
from leasecache.transaction import asend, send

D = TypeVar("D", bound=AnyDriver)


class UnguardedWarning(UserWarning):
    """depends_on without a guard: a lost invalidation is noticed only when the ttl is over."""


class Announcing(Protocol):
    """A cached function, whichever."""

    def commit_message(self, *args: Any, **kwargs: Any) -> CommitMessage: ...


class Registry(ABC, Generic[D]):
    """The functions of one cache and the store that they use now."""

    _asynchronous: bool
    _single: type[FunctionCore]  # what becomes of a function of one value per call
    _batch: type[FunctionCore]  # what becomes of a function of many

    def __init__(self, in_transaction: Callable[[], bool] | None = None) -> None:
        if in_transaction is not None and not callable(in_transaction):
            raise ConfigError(f"in_transaction={in_transaction!r} must be a function that tells, or None")
        self.active: D | None = None  # what calls use: the latest of those below
        self._configured: D | None = None
        self._overriding: list[D] = []
        self._bypass: ContextVar[bool] = ContextVar("leasecache_bypass", default=False)
        self.bypassed = Bypass(self._bypass, in_transaction)
        self._warn_unguarded = False
        self._heard = False  # somebody hears commit messages, or nobody needs to
        self._functions: list[FunctionCore] = []

    def configure(self, url: str, *, guard: str | None = None) -> None:
        """Set or change the URL, at application start; `guard` as in `from_url`. Raises ConfigError naming the fix."""
        self._configure(url, guard)

    @property
    def rules(self) -> RuleSet:
        """The invalidation rules of all functions with `depends_on`, for the daemon."""
        rules = tuple(rule for core in self._functions for rule in core.rules)
        return RuleSet(namespace=self.active.store.namespace if self.active else None, rules=rules)

    @contextlib.contextmanager
    def bypass(self) -> Iterator[None]:
        """Neither serve nor fill in this context; for a transaction that has written."""
        token = self._bypass.set(True)
        try:
            yield
        finally:
            self._bypass.reset(token)

    @contextlib.contextmanager
    def override(self, url: str) -> Iterator[None]:
        """Use another store for a while, such as `memory://` in a test; then the configured one again.

        What is configured meanwhile is used when it is over.
        """
        driver = self._open(url, parse_url(url).guard == "daemon")
        self._overriding.append(driver)
        self._activate()
        try:
            yield
        finally:
            self._overriding = [other for other in self._overriding if other is not driver]
            self._activate()
            self._retire(driver)

    def driver(self) -> D:
        """Return the driver of the configured store. Raises ConfigError before `configure`."""
        if self.active is None:
            raise ConfigError("this cache has no URL yet; call cache.configure('memcached://host:port') at start")
        return self.active

    def commit_message(self, function: Announcing, /, *args: Any, **kwargs: Any) -> CommitMessage:
        """Return the SQL and the parameters that invalidate a function's key when their transaction commits.

        Raises ConfigError when no daemon listens.
        """
        return function.commit_message(*args, **kwargs)

    def check_heard(self, name: str) -> None:
        """Raise ConfigError, naming the function, when no daemon hears commit messages."""
        if not (self._heard or self._overriding):  # a test of what sends messages needs no daemon
            raise ConfigError(
                f"{name}: with guard='none' no daemon hears commit messages, nobody listens; "
                "call invalidate() after the commit, or run the daemon and pass guard='daemon'"
            )

    def announce(self, conn: Any, message: CommitMessage) -> Any:
        """Run a commit message; awaited in an `AsyncCache`."""
        return asend(conn, message) if self._asynchronous else send(conn, message)

    @abstractmethod
    def _open(self, url: str, guarded: bool) -> D:
        """Return a driver of the store at `url`."""

    @abstractmethod
    def _retire(self, driver: D) -> None:
        """Close a driver that is used no more."""

    def _activate(self) -> None:
        self.active = self._overriding[-1] if self._overriding else self._configured

    def _configure(self, url: str, guard: str | None) -> None:
        parsed = parse_url(url)
        check_guard(guard)
        guard = guard or parsed.guard
        replaced, self._configured = self._configured, self._open(url, guard == "daemon")
        self._activate()
        if replaced is not None:
            self._retire(replaced)
        self._heard = guard == "daemon" or parsed.scheme == "null"
        self._warn_unguarded = parsed.scheme not in ("memory", "null") and guard is None
        self._warn_once(4)  # _warn_once, _configure, configure or from_url, who called it

    def _declare(
        self,
        fn: Any,
        template: str,
        policy: Policy,
        depends_on: Row | Sequence[Row] | None,
        ignore: Sequence[str],
        *,
        batch: bool = False,
    ) -> Any:
        inner = plain(fn)
        self._check(inner)
        kind = self._batch if batch else self._single
        core = kind(
            inner,
            template,
            policy,
            signature=BatchSignature if batch else KeySignature,
            runtime=self,
            depends_on=depends_on,
            ignore=ignore,
        )
        self._register(core)
        return decorate(fn, core)

    def _check(self, fn: Loader) -> None:
        if not hasattr(fn, "__qualname__") or not hasattr(fn, "__annotations__"):
            raise DefinitionError(f"{fn!r} is not a function written with def; wrap it in one to cache it")
        if inspect.iscoroutinefunction(fn) and not self._asynchronous:
            raise DefinitionError(f"{fn.__qualname__} is async; Cache caches plain functions, AsyncCache async ones")
        if self._asynchronous and not inspect.iscoroutinefunction(fn):
            raise DefinitionError(
                f"{fn.__qualname__} is not async def; AsyncCache caches async functions, Cache plain ones"
            )

    def _register(self, core: FunctionCore) -> None:
        overlapping = [other for other in self._functions if other.template.overlaps(core.template)]
        for other in overlapping:
            if other.name != core.name:
                raise DefinitionError(
                    f"{core.name}: template {core.template.text!r} can render a key of {other.name} "
                    f"({other.template.text!r}); give one of them another prefix"
                )
        # Of the same name and template: defined again. Of the same name alone: another product of one factory.
        self._functions = [other for other in self._functions if other not in overlapping] + [core]
        self._warn_once(5)  # _warn_once, _register, _declare, the decorator, who used it

    def _warn_once(self, stacklevel: int) -> None:
        if self._warn_unguarded and any(core.rules for core in self._functions):
            self._warn_unguarded = False
            warnings.warn(
                "depends_on without a guard: if an invalidation is lost, a value can be wrong until its ttl is over; "
                "run the invalidation daemon and pass guard='daemon', or guard='none' to say that this is understood",
                UnguardedWarning,
                stacklevel=stacklevel,
            )


def chosen(policy: Policy | None, fields: Mapping[str, Any]) -> Policy:
    """Return the policy that a decorator was given, whole or by its fields. Raises DefinitionError."""
    if policy is not None:
        if fields:
            raise DefinitionError(f"give either policy=… or its fields, not both ({', '.join(fields)})")
        if not isinstance(policy, Policy):
            raise DefinitionError(f"policy must be a Policy(ttl=…), not {policy!r}")
        return policy
    try:
        return Policy(**fields)
    except TypeError as error:
        if isinstance(error, DefinitionError):
            raise
        known = ", ".join(Policy.__dataclass_fields__)
        raise DefinitionError(f"cached(): {str(error).replace('Policy.__init__() ', '')}; fields are {known}") from None


def check_lease(key: object, lease_for: object) -> None:
    """Refuse a key or a duration that no node could take. Raises ValueError, TypeError or ConfigError."""
    check_key(key)
    if not (at_least(lease_for, 1) and lease_for <= LEASE_MOST):  # type: ignore[operator]
        raise ConfigError(f"lease_for={lease_for!r} must be from 1 s to {LEASE_MOST} s")


def unmarked(key: bytes, answer: Answer) -> Answer:
    """Return an answer to who knows no marks: of a value that was too large to store there is nothing to serve."""
    if isinstance(answer, Wait) or answer.flags != UNCACHEABLE:
        return answer
    return Lease(key, answer.token if isinstance(answer, Lease) else None)


def check_given(lease: object) -> None:
    """Refuse what is no lease. Raises TypeError."""
    if not isinstance(lease, Lease):
        raise TypeError(f"a lease is what lease_get has returned, not {type(lease).__name__}")


def check_fill(lease: object, value: object, ttl: object) -> None:
    """Refuse what could not be stored as it was meant. Raises TypeError or ConfigError."""
    check_given(lease)
    if not isinstance(value, bytes):
        raise TypeError(f"a value is bytes, not {type(value).__name__}")
    if not at_least(ttl, 1):
        raise ConfigError(f"ttl={ttl!r} must be at least 1 s")


def check_invalidation(keys: Iterable[object], stale_for: object) -> None:
    """Refuse keys or a duration that no node could take. Raises ValueError, TypeError or ConfigError."""
    for key in keys:
        check_key(key)
    if not at_least(stale_for, 0):
        raise ConfigError(f"stale_for={stale_for!r} must be 0 or more s")
