"""The decorated function: it keeps its signature and gains lookup, get_many, peek, refresh, invalidate, key …"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

import wrapt

from leasecache.flow import Entry
from leasecache.function import CachedCore

P = ParamSpec("P")
R = TypeVar("R")


class _Surface:
    """What a decorated function offers, unbound and bound alike. wrapt keeps `_self_` attributes on the wrapper."""

    __slots__ = ()
    __wrapped__: Callable[..., Any]
    _self_core: CachedCore
    _self_skip: int  # leading arguments that are not part of the key: 1 for a method called on its class

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_core.call(self.__wrapped__, self._self_skip, args, kwargs)

    def lookup(self, *args: Any, **kwargs: Any) -> Entry:
        """Return an Entry: the value, its state and the s until it expires."""
        return self._self_core.lookup(self.__wrapped__, self._self_skip, args, kwargs)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Load now, store under a lease, return the value."""
        return self._self_core.refresh(self.__wrapped__, self._self_skip, args, kwargs)

    def get_many(self, arguments: Iterable[Any], **ignored: Any) -> dict[Any, Any]:
        """Return {argument: value}; an argument is the key's only parameter, or a tuple of all of them.

        Parameters that are not in the key are given by name and go to every load.
        """
        return self._self_core.get_many(self.__wrapped__, arguments, ignored)

    def peek(self, *args: Any, **kwargs: Any) -> Entry | None:
        """Return the cached Entry or None; never takes a lease, never loads."""
        return self._self_core.peek(args[self._self_skip :], kwargs)

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Void outstanding leases; the value stays stale for `stale_for` s, or goes. Raises NodeError.

        Takes the key's parameters alone, as do `peek` and `key`.
        """
        self._self_core.invalidate(args[self._self_skip :], kwargs)

    def key(self, *args: Any, **kwargs: Any) -> bytes:
        """Return the logical key of these arguments."""
        return self._self_core.key(args[self._self_skip :], kwargs)

    @property
    def original(self) -> Callable[..., Any]:
        """The undecorated function."""
        return self.__wrapped__


class _Bound(_Surface, wrapt.BoundFunctionWrapper[..., Any]):
    """A decorated method, bound to its instance or class."""

    @property
    def _self_core(self) -> CachedCore:  # type: ignore[override]
        core: CachedCore = self._self_parent._self_core
        return core

    @property
    def _self_skip(self) -> int:  # type: ignore[override]
        unbound = self._self_instance is None and self._self_binding == "function"
        return 1 if unbound and self._self_core.signature.is_method else 0


class _Function(_Surface, wrapt.FunctionWrapper[..., Any]):
    """A decorated function."""

    __bound_function_wrapper__ = _Bound

    def __init__(self, fn: Callable[..., Any], core: CachedCore) -> None:
        super().__init__(fn, _unused)
        self._self_core = core
        self._self_skip = 1 if core.signature.is_method and not isinstance(fn, (classmethod, staticmethod)) else 0
        self._self_call = partial(core.call, fn, self._self_skip)  # an attribute of a wrapper is slow to look up

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_call(args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> str:
        return self.__wrapped__.__qualname__

    def __copy__(self) -> "_Function":
        return self

    def __deepcopy__(self, memo: Any) -> "_Function":
        return self


def _unused(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Stand in for wrapt's wrapper function; `__call__` is our own and does not ask for it."""
    raise AssertionError("unreachable")


if TYPE_CHECKING:

    class CachedFunction(_Surface, Generic[P, R]):
        """A decorated function, as type checkers see it: the signature of the original."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
        def lookup(self, *args: P.args, **kwargs: P.kwargs) -> Entry: ...
        def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
        def peek(self, *args: Any, **kwargs: Any) -> Entry | None: ...
        def invalidate(self, *args: Any, **kwargs: Any) -> None: ...
        def key(self, *args: Any, **kwargs: Any) -> bytes: ...
        def get_many(self, arguments: Iterable[Any], **ignored: Any) -> dict[Any, R]: ...
        @property
        def original(self) -> Callable[P, R]: ...
        @overload
        def __get__(self, instance: None, owner: Any) -> "CachedFunction[P, R]": ...
        @overload
        def __get__(self, instance: object, owner: Any) -> "CachedFunction[..., R]": ...
        def __get__(self, instance: object, owner: Any) -> "CachedFunction[..., R]": ...

else:
    CachedFunction = _Function


def decorate(fn: Callable[P, R], core: CachedCore) -> "CachedFunction[P, R]":
    """Return `fn` as a cached function."""
    return _Function(fn, core)  # type: ignore[return-value]


def plain(fn: Any) -> Callable[..., Any]:
    """Return the function inside a classmethod or staticmethod object, or the function itself."""
    return fn.__func__ if isinstance(fn, (classmethod, staticmethod)) else fn
