"""The decorated function: it keeps its signature and gains lookup, get_many, peek, refresh, invalidate, key …

What a method here returns is awaited when the function is cached by an `AsyncCache`, that of `key`, `commit_message`
and `original` apart.
"""

import importlib
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import wrapt

from leasecache.acalls import AsyncCachedCore
from leasecache.amany import AsyncCachedManyCore
from leasecache.calls import CachedCore
from leasecache.function import FunctionCore
from leasecache.many import CachedManyCore
from leasecache.messages import CommitMessage


class _Shared:
    """What every surface has. wrapt keeps `_self_` attributes on the wrapper."""

    __slots__ = ()
    __wrapped__: Callable[..., Any]
    _self_core: Any
    _self_skip: int  # leading arguments that are not part of the key: 1 for a method called on its class

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_core.call(self.__wrapped__, self._self_skip, args, kwargs)

    def lookup(self, *args: Any, **kwargs: Any) -> Any:
        """Return an Entry: the value, its state and the s until it expires."""
        return self._self_core.lookup(self.__wrapped__, self._self_skip, args, kwargs)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Load now, store under a lease, return what a call returns."""
        return self._self_core.refresh(self.__wrapped__, self._self_skip, args, kwargs)

    def peek(self, *args: Any, **kwargs: Any) -> Any:
        """Return the cached Entry or None; never takes a lease, never loads."""
        return self._self_core.peek(args[self._self_skip :], kwargs)

    def invalidate_on_commit(self, conn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Invalidate in every data centre when the transaction of `conn` commits, or never; arguments as `invalidate`.

        `conn` is of psycopg 2 or 3, Django or SQLAlchemy. Raises ConfigError when no daemon listens.
        """
        return self._self_core.announce(conn, self.commit_message(*args, **kwargs))

    def commit_message(self, *args: Any, **kwargs: Any) -> CommitMessage:
        """Return the SQL and the parameters of `invalidate_on_commit`, for any other connection. Not awaited."""
        message: CommitMessage = self._self_core.commit_message(args[self._self_skip :], kwargs)
        return message

    def key(self, *args: Any, **kwargs: Any) -> bytes:
        """Return the logical key of these arguments."""
        key: bytes = self._self_core.key(args[self._self_skip :], kwargs)
        return key

    @property
    def original(self) -> Callable[..., Any]:
        """The undecorated function."""
        return self.__wrapped__


class _Surface(_Shared):
    """What a function of one value per call offers, unbound and bound alike."""

    __slots__ = ()

    def get_many(self, arguments: Iterable[Any], **ignored: Any) -> Any:
        """Return {argument: value}; an argument is the key's only parameter, or a tuple of all of them.

        Parameters that are not in the key are given by name and go to every load.
        """
        if self._self_skip:
            name, method = self._self_core.name, self.__wrapped__.__name__
            holder = self.__wrapped__.__qualname__.rpartition(".")[0]
            raise TypeError(f"{name}: get_many wants an instance, such as {holder}(…).{method}.get_many(…)")
        return self._self_core.get_many(self.__wrapped__, arguments, ignored)

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        """Void outstanding leases; the value stays stale for `stale_for` s, or goes. Raises NodeError.

        Takes the key's parameters alone, as do `peek` and `key`.
        """
        return self._self_core.invalidate(args[self._self_skip :], kwargs)


class _ManySurface(_Shared):
    """What a function of many values per call offers; `lookup`, `peek` and `key` take one of its keys."""

    __slots__ = ()

    def invalidate(self, *arguments: Any) -> Any:
        """Void outstanding leases on these keys; values stay stale for `stale_for` s, or go. Raises NodeError."""
        return self._self_core.invalidate(arguments[self._self_skip :])


class _Binding(_Shared):
    """What a decorated method gets from the function it was bound from."""

    __slots__ = ()
    _self_parent: Any
    _self_instance: Any
    _self_binding: str

    @property
    def _self_core(self) -> Any:
        return self._self_parent._self_core

    @property
    def _self_skip(self) -> int:  # type: ignore[override]
        unbound = self._self_instance is None and self._self_binding == "function"
        return 1 if unbound and self._self_core.signature.is_method else 0

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle as Python's own methods do: by what it is bound to and its name."""
        method = self.__wrapped__
        holder = self._self_instance if self._self_instance is not None else getattr(method, "__self__", None)
        if holder is not None:
            return getattr, (holder, method.__name__)
        return _attribute, (method.__module__, method.__qualname__)


class _Bound(_Binding, _Surface, wrapt.BoundFunctionWrapper[..., Any]):
    """A decorated method, bound to its instance or class."""


class _ManyBound(_Binding, _ManySurface, wrapt.BoundFunctionWrapper[..., Any]):
    """A decorated method of many values per call, bound to its instance or class."""


class _Wrapper(wrapt.FunctionWrapper[..., Any]):
    """A decorated function.

    `__call__` is a slot: a call finds in it what serves this function, without a method of Python in between.
    """

    __slots__ = ("__call__",)
    __call__: Callable[..., Any]

    def __init__(self, fn: Callable[..., Any], core: Any) -> None:
        super().__init__(fn, _unused)
        self._self_core = core
        self._self_skip = 1 if core.signature.is_method and not isinstance(fn, (classmethod, staticmethod)) else 0
        self.__call__ = _served(core, fn, self._self_skip)

    def __reduce_ex__(self, protocol: Any) -> str:
        return self.__wrapped__.__qualname__

    def __copy__(self) -> "_Wrapper":
        return self

    def __deepcopy__(self, memo: Any) -> "_Wrapper":
        return self


class _Function(_Wrapper, _Surface):
    __bound_function_wrapper__ = _Bound


class _ManyFunction(_Wrapper, _ManySurface):
    __bound_function_wrapper__ = _ManyBound


def _attribute(module: str, path: str) -> Any:
    return attrgetter(path)(importlib.import_module(module))


def _served(core: Any, fn: Callable[..., Any], skip: int) -> Callable[..., Any]:
    if isinstance(core, (CachedCore, AsyncCachedCore)):
        return core.served(fn, skip)
    return lambda *args, **kwargs: core.call(fn, skip, args, kwargs)


def _unused(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Stand in for wrapt's wrapper function; `__call__` is our own and does not ask for it."""
    raise AssertionError("unreachable")


def decorate(fn: Callable[..., Any], core: FunctionCore) -> Any:
    """Return `fn` as a cached function of its core's kind."""
    if isinstance(core, (CachedManyCore, AsyncCachedManyCore)):
        return _ManyFunction(fn, core)
    assert isinstance(core, (CachedCore, AsyncCachedCore))
    return _Function(fn, core)


def plain(fn: Any) -> Callable[..., Any]:
    """Return the function inside a classmethod or staticmethod object, or the function itself."""
    return fn.__func__ if isinstance(fn, (classmethod, staticmethod)) else fn
