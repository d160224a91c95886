"""Decorated functions on memory://: bound every way, called every way, and refused with the fix."""

import asyncio
import copy
import datetime
import functools
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from leasecache import Cache, ConfigError, DefinitionError, Policy, row
from tests.unit import postponed


@pytest.fixture
def cache() -> Cache:
    """A cache of the test's own."""
    return Cache.from_url("memory://?namespace=shop", background=None)


SHARED = Cache.from_url("memory://")


@SHARED.cached("square:{x}", ttl=60)
def square(x: int) -> int:
    """Return x squared."""
    return x * x


class Loads:
    """Counts what was loaded."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *arguments: Any) -> str:
        self.calls.append(arguments)
        return f"{len(self.calls)}: {arguments}"


@pytest.fixture
def loads() -> Loads:
    """What the test's loaders were called with."""
    return Loads()


def test_function_keeps_its_face() -> None:
    """Name, docstring, signature and module are those of the original."""
    assert square.__name__ == "square"  # type: ignore[attr-defined]
    assert square.__doc__ == "Return x squared."
    assert str(inspect.signature(square)) == "(x: int) -> int"
    assert square.original(3) == 9
    assert not hasattr(square.original, "key")


def test_hit_and_miss(cache: Cache, loads: Loads) -> None:
    """The first call loads, later ones with the same arguments do not, other arguments load again."""

    @cache.cached("f:{a}:{b}", ttl=60)
    def f(a: int, b: str = "x") -> str:
        return loads(a, b)

    assert f(1) == f(1, "x") == f(a=1, b="x") == f(b="x", a=1) == "1: (1, 'x')"
    assert f(2) == "2: (2, 'x')"
    assert loads.calls == [(1, "x"), (2, "x")]
    assert f.key(1) == f.key(b="x", a=1) == b"shop:f:1:x"


def test_none_is_cached(cache: Cache, loads: Loads) -> None:
    """A loader that finds nothing is not asked again."""

    @cache.cached("f:{a}", ttl=60)
    def f(a: int) -> str | None:
        loads(a)
        return None

    assert f(1) is f(1) is None
    assert len(loads.calls) == 1


def test_invalidate_peek_lookup_refresh(cache: Cache, loads: Loads) -> None:
    """The verbs of a decorated function do what they say."""

    @cache.cached("f:{a}", ttl=60, jitter=0)
    def f(a: int) -> str:
        return loads(a)

    assert f.peek(1) is None
    assert f.lookup(1).state == "loaded"
    assert f.lookup(1).state == "fresh"
    entry = f.peek(1)
    assert entry is not None
    assert (entry.value, entry.state) == ("1: (1,)", "fresh")
    assert f.refresh(1) == f(1) == "2: (1,)"
    f.invalidate(1)
    assert f.peek(1) is None
    assert f(1) == "3: (1,)"


def test_wrong_argument(cache: Cache, loads: Loads) -> None:
    """An argument of the wrong type is refused before anything is looked up or loaded."""

    @cache.cached("f:{a}", ttl=60)
    def f(a: int) -> str:
        return loads(a)

    verbs: list[Callable[[Any], object]] = [
        f,
        f.lookup,
        f.peek,
        f.key,
        f.invalidate,
        f.refresh,
        lambda a: f.get_many([a]),
    ]
    for verb in verbs:
        with pytest.raises(TypeError, match=r"<locals>\.f: key field 'a' must be int, not bool"):
            verb(True)
    assert loads.calls == []


def declare(cache: Cache) -> type:
    """Return a class with a cached method, and a class method and static method in both orders of decorators."""

    class Shop:
        """What is bound in every way."""

        def __init__(self, name: str) -> None:
            self.name = name

        @cache.cached("method:{a}", ttl=60)
        def method(self, a: int) -> str:
            return f"{self.name} {a}"

        @classmethod
        @cache.cached("inner_class:{a}", ttl=60)
        def inner_class(cls, a: int) -> str:
            return f"{cls.__name__} {a}"

        @cache.cached("outer_class:{a}", ttl=60)
        @classmethod
        def outer_class(cls, a: int) -> str:
            return f"{cls.__name__} {a}"

        @staticmethod
        @cache.cached("inner_static:{a}", ttl=60)
        def inner_static(a: int) -> str:
            return f"static {a}"

        @cache.cached("outer_static:{a}", ttl=60)
        @staticmethod
        def outer_static(a: int) -> str:
            return f"static {a}"

    return Shop


# Python 3.13's classmethod no longer binds what it wraps: only a call still reaches the class, not `.key` and the like.
unbound_since_313 = pytest.mark.xfail(
    sys.version_info >= (3, 13), reason="put cached above classmethod", raises=TypeError
)
BINDINGS = [
    ("method", "own 1"),
    pytest.param("inner_class", "Shop 1", marks=unbound_since_313),
    ("outer_class", "Shop 1"),
    ("inner_static", "static 1"),
    ("outer_static", "static 1"),
]


@pytest.mark.parametrize(("name", "value"), BINDINGS)
def test_bound(cache: Cache, name: str, value: str) -> None:
    """Called on an instance, each kind of method loads once, with self or cls and without them in the key."""
    bound = getattr(declare(cache)("own"), name)
    assert bound.key(1) == f"shop:{name}:1".encode()
    assert bound.lookup(1).state == "loaded"
    assert bound(1) == bound(a=1) == bound.refresh(1) == value
    assert bound.get_many([1, 2]) == {1: value, 2: value.replace("1", "2")}
    assert bound.peek(1).value == bound.original(1) == value
    bound.invalidate(1)
    assert bound.peek(1) is None


@pytest.mark.parametrize(("name", "value"), BINDINGS[1:])
def test_bound_to_the_class(cache: Cache, name: str, value: str) -> None:
    """Class methods and static methods work on the class as they do on an instance."""
    on_class = getattr(declare(cache), name)
    assert on_class(1) == on_class(a=1) == value
    assert on_class.key(1) == f"shop:{name}:1".encode()
    assert on_class.get_many([1, 2])[2] == value.replace("1", "2")


@pytest.mark.parametrize(("name", "value"), [("inner_class", "Shop 1"), ("outer_class", "Shop 1")])
def test_class_method_call(cache: Cache, name: str, value: str) -> None:
    """Whichever decorator is on top, calling a class method works on the class and on an instance."""
    shop = declare(cache)
    assert getattr(shop, name)(1) == getattr(shop("own"), name)(a=1) == value


def test_unbound_method(cache: Cache) -> None:
    """A method called on its class takes the instance first; it is not in the key."""
    shop = declare(cache)
    own = shop("own")
    assert shop.method(own, 1) == own.method(1) == "own 1"
    assert shop.method.lookup(own, 1).state == "fresh"
    assert shop.method.key(own, 1) == own.method.key(1) == b"shop:method:1"
    shop.method.invalidate(own, 1)
    assert own.method.peek(1) is None


def test_inherited_class_method(cache: Cache) -> None:
    """A class method called on a subclass gets the subclass."""
    shop = declare(cache)
    special = type("Special", (shop,), {})
    assert special.outer_class(1) == "Special 1"
    assert special.inner_class(1) == "Special 1"


def test_get_many(cache: Cache, loads: Loads) -> None:
    """A batch takes single arguments or tuples, asks for duplicates once, and keeps the order."""

    @cache.cached("one:{a}", ttl=60)
    def one(a: int) -> str:
        return loads(a)

    @cache.cached("two:{b}:{a}", ttl=60)
    def two(a: int, b: str) -> str:
        return loads(a, b)

    one(2)
    assert list(one.get_many([3, 2, 3, 1])) == [3, 2, 1]
    assert loads.calls == [(2,), (3,), (1,)]
    assert one.get_many([(1,)]) == {(1,): "3: (1,)"}
    assert one.get_many([]) == {}
    assert set(two.get_many([(1, "x"), (2, "y")])) == {(1, "x"), (2, "y")}
    assert loads.calls[3:] == [(1, "x"), (2, "y")]
    assert two.key(2, "y") == b"shop:two:y:2"


class Point(NamedTuple):
    """A tuple with names."""

    a: int
    b: str


def test_get_many_with_named_tuples(cache: Cache, loads: Loads) -> None:
    """A NamedTuple is a tuple of arguments like any other."""

    @cache.cached("f:{a}:{b}", ttl=60)
    def f(a: int, b: str) -> str:
        return loads(a, b)

    assert f.get_many([Point(1, "x")]) == {(1, "x"): "1: (1, 'x')"}
    assert f(1, "x") == "1: (1, 'x')"


def test_ignored_parameters(cache: Cache, loads: Loads) -> None:
    """An ignored parameter reaches the loader and not the key, wherever it stands."""

    @cache.cached("f:{a}", ttl=60, ignore=("session",))
    def f(session: str, a: int) -> str:
        return loads(session, a)

    assert f("s1", 1) == f("s2", 1) == f(a=1, session="s3") == "1: ('s1', 1)"
    assert f.key(1) == b"shop:f:1"
    assert f.get_many([1, 2], session="s4")[2] == "2: ('s4', 2)"
    f.invalidate(1)
    assert f.peek(1) is None


def test_values_are_copies(cache: Cache) -> None:
    """What a caller does to its value does not reach the next one."""

    @cache.cached("f:{a}", ttl=60)
    def f(a: int) -> list[int]:
        return [a]

    f(1).append(2)
    f(1).append(3)
    assert f(1) == [1]


def test_pickling() -> None:
    """A decorated function pickles by its name and comes back as itself, cache and all."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(square, protocol)) is square


@pytest.mark.parametrize("redefine", ["same", "other template"])
def test_redefinition(cache: Cache, redefine: str, loads: Loads) -> None:
    """Defining a function of the same qualified name again, as a reload does, replaces it."""

    def define(template: str) -> Any:
        @cache.cached(template, ttl=60)
        def f(a: int) -> str:
            return loads(a)

        return f

    old = define("f:{a}")
    new = define("f:{a}" if redefine == "same" else "g:{a}")
    assert new(1) == "1: (1,)"
    assert old(1) == ("1: (1,)" if redefine == "same" else "2: (1,)")


def test_functions_of_one_factory_keep_their_rules(cache: Cache) -> None:
    """Functions of the same qualified name on templates of their own are all followed by the daemon."""

    def declare(table: str) -> Any:
        @cache.cached(table + ":{a}", ttl=60, depends_on=row(table, a="id"))
        def f(a: int) -> int:
            return a

        return f

    for table in ("users", "media", "users"):
        declare(table)
    assert [rule.table for rule in cache.rules.rules] == ["media", "users"]


def test_reloaded_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module whose functions are cached elsewhere can be reloaded."""
    (tmp_path / "reloaded_app.py").write_text(
        "from tests.unit.test_decorator import SHARED\n"
        "@SHARED.cached('reloaded:{a}', ttl=60)\n"
        "def add_one(a: int) -> int:\n"
        "    return a + 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_app")
    assert module.add_one(1) == 2
    assert importlib.reload(module).add_one(2) == 3


def test_overlapping_templates_refused(cache: Cache) -> None:
    """Two functions whose keys could meet are refused, and both are named."""

    @cache.cached("f:{a}", ttl=60)
    def first(a: str) -> str:
        return a

    with pytest.raises(
        DefinitionError, match=r"<locals>\.second: template 'f:all' can render a key of .*<locals>\.first"
    ):

        @cache.cached("f:all", ttl=60)
        def second() -> str:
            return ""

    @Cache().cached("f:all", ttl=60)
    def elsewhere() -> str:
        return ""


def test_a_refused_function_leaves_no_trace(cache: Cache) -> None:
    """After a refusal the template is free for a function that is declared rightly."""
    with pytest.raises(DefinitionError):

        @cache.cached("f:{a}", ttl=60)
        def wrong(a: float) -> str:
            return ""

    @cache.cached("f:{a}", ttl=60)
    def right(a: int) -> str:
        return ""

    assert right(1) == ""


def test_two_namespaces_do_not_meet(loads: Loads) -> None:
    """The namespace is part of every key."""

    def of(namespace: str) -> Any:
        @Cache.from_url(f"memory://?namespace={namespace}").cached("f:{a}", ttl=60)
        def f(a: int) -> str:
            return loads(a)

        return f

    assert of("x").key(1) == b"x:f:1"
    assert of("y").key(1) == b"y:f:1"


def test_not_configured() -> None:
    """Use before configure is an error that names the fix; afterwards the same function works."""
    cache = Cache()

    @cache.cached("f:{a}", ttl=60)
    def f(a: int) -> int:
        return a

    for verb in (f, f.lookup, f.peek, f.key, f.invalidate, f.refresh):
        with pytest.raises(ConfigError, match=r"no URL yet; call cache\.configure\('memcached://host:port'\)"):
            verb(1)
    cache.configure("memory://")
    assert f(1) == 1


def test_override(cache: Cache, loads: Loads) -> None:
    """Within override another store is used; afterwards the first one again, with what it held."""

    @cache.cached("f:{a}", ttl=60)
    def f(a: int) -> str:
        return loads(a)

    assert f(1) == "1: (1,)"
    with cache.override("memory://"):
        assert f(1) == f(1) == "2: (1,)"
        assert f.key(1) == b"f:1"
    assert f(1) == "1: (1,)"
    with pytest.raises(ZeroDivisionError), cache.override("memory://"):
        raise ZeroDivisionError
    assert f(1) == "1: (1,)"


def test_override_before_configure() -> None:
    """Tests need no configured cache; after override it is as unconfigured as before."""
    with postponed.cache.override("memory://"):
        assert postponed.add_one(1) == postponed.add_one(1) == 2
    with pytest.raises(ConfigError):
        postponed.add_one(1)


def test_bypass(cache: Cache, loads: Loads) -> None:
    """Within bypass every verb loads and nothing is stored."""

    @cache.cached("f:{a}", ttl=60)
    def f(a: int) -> str:
        return loads(a)

    with cache.bypass():
        assert f(1) == "1: (1,)"
        assert f.lookup(1).state == "uncached"
        assert f.refresh(1) == "3: (1,)"
        assert f.get_many([1]) == {1: "4: (1,)"}
        with cache.bypass():
            pass
        assert f(1) == "5: (1,)"
    assert f.peek(1) is None
    assert f(1) == f(1) == "6: (1,)"


def test_bypass_is_of_one_context(cache: Cache, loads: Loads) -> None:
    """One task's bypass does not reach another task."""

    @cache.cached("f:{a}", ttl=60)
    def f(a: int) -> str:
        return loads(a)

    async def bypassing(inside: asyncio.Event, over: asyncio.Event) -> None:
        with cache.bypass():
            inside.set()
            await over.wait()

    async def main() -> None:
        inside, over = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(bypassing(inside, over))
        await inside.wait()
        assert f(1) == f(1)
        over.set()
        await task

    asyncio.run(main())
    assert len(loads.calls) == 1


def test_policy_object(cache: Cache) -> None:
    """A Policy can be given whole instead of its fields, not beside them."""

    @cache.cached("f:{a}", policy=Policy(ttl=60))
    def f(a: int) -> int:
        return a

    assert f(1) == 1
    with pytest.raises(DefinitionError, match=r"either policy=… or its fields, not both \(ttl\)"):
        cache.cached("g", policy=Policy(ttl=60), ttl=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "cached\\(\\): .*missing .*'ttl'; fields are ttl, stale_for"),
        ({"ttl": 60, "stale": 5}, "unexpected keyword argument 'stale'.*fields are ttl, stale_for, lease_for"),
        ({"ttl": 0}, "ttl=0 must be at least 1 s"),
    ],
)
def test_policy_faults(cache: Cache, fields: dict[str, Any], message: str) -> None:
    """A policy that lacks its ttl, has an unknown field or a bad value is refused, and the fields are listed."""
    with pytest.raises(DefinitionError, match=message):
        cache.cached("f", **fields)


def functions() -> Iterator[tuple[Callable[..., Any], str]]:
    """Return functions that cannot be cached under "f:{a}", and what is said."""

    async def coroutine(a: int) -> str:
        return ""

    def no_return(a: int):  # type: ignore[no-untyped-def]
        return ""

    def open_return(a: int) -> dict:  # type: ignore[type-arg]
        return {}

    def other(b: int) -> str:
        return ""

    def more(a: int, user: str) -> str:
        return ""

    def a_float(a: float) -> str:
        return ""

    def a_time(a: datetime.datetime) -> str:
        return ""

    yield coroutine, "coroutine is async; Cache caches plain functions"
    yield no_return, "no_return has no return annotation; add one, or codec='json' or codec='pickle'"
    yield open_return, "the return annotation does not say how to encode the value; annotate it precisely"
    yield other, "other has no parameter 'a', which its template or ignore names"
    yield more, "parameter 'user' is not in the key, so callers would share a value"
    yield a_float, "parameter 'a' cannot be a key field as float: two floats that print alike differ; use int or str"
    yield a_time, "parameter 'a' cannot be a key field as datetime: its text depends on the time zone; use date, int"


@pytest.mark.parametrize(("fn", "message"), list(functions()), ids=lambda part: getattr(part, "__name__", ""))
def test_functions_refused(cache: Cache, fn: Callable[..., Any], message: str) -> None:
    """What cannot be cached rightly is refused when the decorator runs, with the fix."""
    with pytest.raises(DefinitionError, match=message):
        cache.cached("f:{a}", ttl=60)(fn)


def test_codec_by_name(cache: Cache) -> None:
    """With an explicit codec no return annotation is needed."""

    @cache.cached("f:{a}", ttl=60, codec="json")
    def f(a: int):  # type: ignore[no-untyped-def]
        return {"a": [a]}

    assert f(1) == f(1) == {"a": [1]}


def test_postponed_annotations() -> None:
    """Under `from __future__ import annotations`, a return type that is defined later is found at first use."""
    with postponed.cache.override("memory://"):
        loaded, hit = postponed.early(1), postponed.early(1)
        assert loaded == hit == postponed.Later(1)
        assert loaded is not hit
        assert postponed.early.key(1) == b"early:1:!"
        assert postponed.Shelf().get(2) == postponed.Shelf().get(2) == postponed.Later(2)


def test_get_many_takes_no_key_parameter_by_name(cache: Cache, loads: Loads) -> None:
    """A key parameter given for the whole batch is refused: it would be stored under the key of another value."""

    @cache.cached("direct:{a}:{b}", ttl=60)
    def direct(a: int, b: str = "x") -> str:
        return loads(a, b)

    @cache.cached("other:{a}:{b}", ttl=60, ignore=("session",))
    def other(a: int, b: str = "x", session: object = None) -> str:
        return loads(a, b)

    for f in (direct, other):
        with pytest.raises(TypeError, match=r"get_many takes 'b' as part of each argument, such as \(a, b\)"):
            f.get_many([1], b="y")
        with pytest.raises(TypeError, match=r"get_many takes 'a' as part of each argument"):
            f.get_many([1], a=2)
    assert loads.calls == []


def test_get_many_with_positional_only_parameters(cache: Cache, loads: Loads) -> None:
    """Parameters that cannot be named in a call reach it by position, in a batch too."""

    @cache.cached("f:{b}:{a}", ttl=60, ignore=("session", "more"))
    def f(a: int, session: object = None, b: int = 0, /, more: object = None) -> str:
        return loads(a, session, b, more)

    @cache.cached("g:{a}", ttl=60, ignore=("session",))
    def g(a: int, /, session: object) -> str:
        return loads(a, session)

    assert f.get_many([(1, 2)]) == {(1, 2): "1: (1, None, 2, None)"}
    assert g.get_many([1], session="s") == {1: "2: (1, 's')"}
    assert (f(1, None, 2), g(1, "t")) == ("1: (1, None, 2, None)", "2: (1, 's')")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'session'"):
        g.get_many([2])
    with pytest.raises(TypeError, match="unexpected keyword argument 'sesion'"):
        g.get_many([2], sesion=1)


def test_copying_gives_the_function_itself() -> None:
    """Like any function, a decorated one is not copied with the object that holds it."""
    assert copy.copy(square) is square
    assert copy.deepcopy({"square": square})["square"] is square


@pytest.mark.parametrize("fn", [functools.partial(int), len, 5], ids=["partial", "builtin", "number"])
def test_what_is_no_plain_function_is_refused(cache: Cache, fn: Any) -> None:
    """Only functions have the name and the annotations that a key is made of."""
    with pytest.raises(DefinitionError, match=r"is not a function written with def"):
        cache.cached("f:{a}", ttl=60)(fn)


def test_return_type_that_never_resolves() -> None:
    """A return annotation that is still unknown at first use is an error that names the function."""
    cache = Cache.from_url("memory://")

    def get_item(item_id: int) -> "NoSuchType":  # type: ignore[name-defined]  # noqa: F821
        return item_id

    decorated = cache.cached("item:{item_id}", ttl=60)(get_item)
    with pytest.raises(DefinitionError, match=r"get_item: its return annotation does not resolve.*NoSuchType"):
        decorated(1)
