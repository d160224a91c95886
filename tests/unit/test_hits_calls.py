"""The call of a cached function: what is served at once, and what goes the other way."""

from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from leasecache.errors import NodeError
from leasecache.metrics import FunctionStats
from tests.twins import USABLE


@pytest.fixture(params=USABLE, ids=lambda twin: twin.__name__)
def twin(request: pytest.FixtureRequest) -> Any:
    """Each twin that works with the counters of this process."""
    return request.param


class Function:
    """A cached function's call with all that it needs, and what became of it."""

    def __init__(self, twin: Any) -> None:
        self.stats = FunctionStats()
        self.switch: ContextVar[bool] = ContextVar("bypass", default=False)
        self.in_transaction = False
        self.bypassed = twin.Bypass(self.switch, lambda: self.in_transaction)
        self.answers: dict[bytes, Any] = {}
        self.otherwise: list[tuple[Any, ...]] = []
        self.active = SimpleNamespace(name="first")
        self.decode: Callable[[bytes], Any] = bytes.decode
        self.twin = twin
        self.call = twin.Call(self, self._bind, self._values, 2, self.stats, self._otherwise)
        self.function = self.call.of(self._load, 0)

    def _bind(self) -> tuple[Any, Any, Any]:
        driver = self.active
        bound = SimpleNamespace(
            driver=driver, read=self._read, read_many=lambda keys: [self._read_or(key) for key in keys]
        )
        literals = (driver.name.encode() + b":", b":", b"")
        renderer = self.twin.Renderer("f", literals, ("a", "b"), (0, 1), (False, False), (None, None))
        return bound, renderer, self.decode

    def _read(self, key: bytes) -> Any:
        found = self._read_or(key)
        if isinstance(found, BaseException):
            raise found
        return found

    def _read_or(self, key: bytes) -> Any:
        return self.answers.get(key, "miss")

    def _values(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        return (*args, *kwargs.values(), "default")[:2]

    def _load(self, *args: Any, **kwargs: Any) -> str:
        return f"loaded {args} {kwargs}"

    def _otherwise(self, bound: Any, load: Any, args: Any, kwargs: Any, key: bytes, found: Any) -> str:
        self.otherwise.append((bound.driver.name, args, kwargs, key, found))
        return "otherwise"


@pytest.fixture
def function(twin: Any) -> Function:
    """A function of the test's own."""
    return Function(twin)


def test_call(function: Function) -> None:
    """A plain hit is decoded and counted; all else goes the other way with the key and what was found."""
    function.answers[b"first:1:x"] = b"value"
    assert function.function(1, "x") == "value"
    assert function.stats.hits == 1
    assert function.function(2, "x") == "otherwise"
    error = function.answers[b"first:3:x"] = NodeError("gone")
    assert function.function(3, "x") == "otherwise"
    assert function.otherwise == [
        ("first", (2, "x"), {}, b"first:2:x", "miss"),
        ("first", (3, "x"), {}, b"first:3:x", error),
    ]
    assert function.stats.hits == 1


def test_call_by_name_and_with_defaults(function: Function) -> None:
    """Other shapes of a call than the key's fields in order find the same key."""
    function.answers[b"first:1:default"] = b"value"
    assert function.function(1) == function.function(a=1) == function.call(None, 1, ("self", 1), {}) == "value"
    assert function.function(1, b="y") == "otherwise"
    assert function.otherwise[-1][1:4] == ((1,), {"b": "y"}, b"first:1:y")


def test_call_refuses_arguments(function: Function) -> None:
    """An argument of the wrong type is refused before anything is asked."""
    with pytest.raises(TypeError, match="key field 'a' must be int, not str"):
        function.function("1", "x")
    assert function.otherwise == []


def test_call_that_is_bypassed(function: Function) -> None:
    """In a bypass and in a transaction nothing is served, for one call and its arguments as they were."""
    function.answers[b"first:1:x"] = b"value"
    token = function.switch.set(True)
    assert function.function(1, b="x") == "loaded (1,) {'b': 'x'}"
    function.switch.reset(token)
    assert function.function(1, "x") == "value"
    function.in_transaction = True
    assert function.function(1, "x") == "loaded (1, 'x') {}"
    assert function.bypassed() is True


def test_call_of_another_store(function: Function) -> None:
    """When the cache has another store, a call uses that one, and the former one when it is back."""
    function.answers = {b"first:1:x": b"old", b"second:1:x": b"new"}
    first = function.active
    assert function.function(1, "x") == "old"
    function.active = SimpleNamespace(name="second")
    assert function.function(1, "x") == "new"
    assert function.call.many([(1, "x")])[1] == {(1, "x"): "new"}
    function.active = first
    assert function.function(1, "x") == "old"


def test_call_of_what_is_no_value(function: Function) -> None:
    """Bytes that cannot be decoded go the other way as they are, and are no hit; an interrupt is no such error."""
    function.answers[b"first:1:x"] = b"\xff"
    assert function.function(1, "x") == "otherwise"
    assert function.otherwise[-1][-1] == b"\xff"
    assert function.call.many([(1, "x")])[2] == [((1, "x"), b"first:1:x", b"\xff")]
    assert function.stats.hits == 0

    def interrupted(body: bytes) -> Any:
        raise KeyboardInterrupt

    function.decode, function.active = interrupted, SimpleNamespace(name="first")
    with pytest.raises(KeyboardInterrupt):
        function.function(1, "x")


def test_many(function: Function) -> None:
    """A batch is parted into values of plain hits and the rest, which keeps its order."""
    error = NodeError("gone")
    function.answers = {b"first:1:x": b"one", b"first:3:x": error, b"first:4:x": b"four"}
    bound, found, rest = function.call.many([(4, "x"), (3, "x"), (2, "x"), (1, "x")])
    assert bound.driver is function.active
    assert list(found.items()) == [((4, "x"), "four"), ((1, "x"), "one")]
    assert rest == [((3, "x"), b"first:3:x", error), ((2, "x"), b"first:2:x", "miss")]
    assert function.stats.hits == 2


@pytest.mark.parametrize("arguments", [[(1,)], [1], [(1, "x", 2)], [(1, "x"), (2,)]])
def test_many_of_another_shape(function: Function, arguments: list[Any]) -> None:
    """Arguments of another shape are not for here."""
    assert function.call.many(arguments) is None


def test_many_with_too_few_answers(function: Function) -> None:
    """A store that does not answer every key is an error, not a look behind the end of its list."""
    function.active = SimpleNamespace(name="first")
    bound, renderer, decode = function._bind()
    bound.read_many = lambda keys: []
    call = function.twin.Call(function, lambda: (bound, renderer, decode), None, 2, function.stats, None)
    with pytest.raises(ValueError, match=r"keys|shorter"):
        call.many([(1, "x")])
