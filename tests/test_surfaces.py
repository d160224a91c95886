"""`Cache` and `AsyncCache`, and what they make of functions: the same names with the same parameters."""

import inspect
from typing import Any

import pytest

from leasecache import AsyncCache, Cache, surface
from leasecache.decorator import _Function, _ManyFunction

RENAMED = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
SPECIAL = {*RENAMED, *RENAMED.values()}
AWAITED = {"lease_get", "lease_set", "release", "invalidate", "clear", "aclose", "__aenter__", "__aexit__"}
TWINS = [
    (Cache, AsyncCache),
    (surface.CachedFunction, surface.AsyncCachedFunction),
    (surface.CachedManyFunction, surface.AsyncCachedManyFunction),
]
each_twin = pytest.mark.parametrize(("sync", "twin"), TWINS, ids=lambda cls: cls.__name__)


def methods(cls: Any) -> dict[str, Any]:
    """Return the public methods that a class defines itself or inherits from ours."""
    found = {
        name: member
        for base in reversed(cls.__mro__)
        if base.__module__.startswith("leasecache.")
        for name, member in vars(base).items()
        if callable(getattr(member, "__func__", member)) and (not name.startswith("_") or name in SPECIAL)
    }
    return {name: getattr(member, "__func__", member) for name, member in found.items()}


@each_twin
def test_same_names(sync: Any, twin: Any) -> None:
    """Every public name of one is a name of the other, `close` apart."""
    assert {RENAMED.get(name, name) for name in methods(sync)} == {*methods(twin)}


@each_twin
def test_same_parameters(sync: Any, twin: Any) -> None:
    """Each method takes the same parameters with the same defaults and kinds."""
    for name, method in methods(sync).items():
        other = getattr(twin, RENAMED.get(name, name))
        other = getattr(other, "__func__", other)
        for one, two in zip(
            inspect.signature(method).parameters.values(), inspect.signature(other).parameters.values(), strict=True
        ):
            assert (one.name, one.kind, one.default is one.empty) == (two.name, two.kind, two.default is two.empty), (
                name
            )


def test_what_is_awaited() -> None:
    """Of a cache, what does I/O is a coroutine function in `AsyncCache`, and nothing else is."""
    found = methods(AsyncCache)
    assert {name for name in found if inspect.iscoroutinefunction(getattr(AsyncCache, name))} == AWAITED
    assert not any(inspect.iscoroutinefunction(method) for method in methods(Cache).values())


def test_what_is_awaited_of_functions() -> None:
    """Of a decorated coroutine function everything but `key`, `commit_message` and `original` is awaited."""
    for cls in (surface.AsyncCachedFunction, surface.AsyncCachedManyFunction):
        plain = {name for name, method in methods(cls).items() if not inspect.iscoroutinefunction(method)}
        assert plain - {"__get__"} == {"key", "commit_message"}


@pytest.mark.parametrize(
    ("wrapper", "typed"), [(_Function, surface.CachedFunction), (_ManyFunction, surface.CachedManyFunction)]
)
def test_types_say_what_the_wrappers_have(wrapper: Any, typed: Any) -> None:
    """What type checkers see of a decorated function is what it has at run time."""
    names = {name for name in vars(typed) if not name.startswith("_")}
    assert {name for name in names if not hasattr(wrapper, name)} == set()
    own = {name for base in wrapper.__mro__ if base.__module__ == "leasecache.decorator" for name in vars(base)}
    assert {name for name in own if not name.startswith("_")} == names
