"""Which parameters make the key: the arguments of any legal call end up in the right fields."""

import functools
import inspect
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.errors import DefinitionError
from leasecache.keys import FieldType
from leasecache.signature import KeySignature, qualified_name, resolve
from tests.unit import postponed


def plain(a: int, b: str = "b") -> str:
    """Parameters in the order of the fields, one with a default."""
    return ""


def mixed(session: object, /, b: str, a: int = 7, *, c: bool = False) -> str:
    """Every kind of parameter that has a name."""
    return ""


class Owner:
    """A class with a method."""

    def method(self, a: int) -> str:
        """Return something."""
        return ""


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1, "x"), {}, (1, "x")),
        ((1,), {}, (1, "b")),
        ((1,), {"b": "x"}, (1, "x")),
        ((), {"b": "x", "a": 1}, (1, "x")),
        ((), {"a": 1}, (1, "b")),
    ],
)
def test_values(args: tuple[Any, ...], kwargs: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """The same arguments, however they are passed, are the same values."""
    assert KeySignature(plain, ("a", "b"), ()).values(args, kwargs) == expected


def test_order_is_that_of_the_template() -> None:
    """Values follow the fields of the template, not the parameters of the function."""
    signature = KeySignature(mixed, ("c", "a", "b"), ("session",))
    assert signature.values((object(), "x"), {"c": True}) == (True, 7, "x")
    assert signature.key_values(("x",), {"a": 1}) == (False, 1, "x")


@given(a=st.integers(), b=st.text(), c=st.booleans(), by_name=st.booleans(), leave_out=st.booleans())
def test_agrees_with_inspect(a: int, b: str, c: bool, by_name: bool, leave_out: bool) -> None:
    """The values are those that the function itself would see."""
    kwargs: dict[str, Any] = {} if leave_out else {"c": c, "a": a}
    args: tuple[Any, ...] = ("session",) if by_name else ("session", b)
    kwargs |= {"b": b} if by_name else {}
    bound = inspect.signature(mixed).bind(*args, **kwargs)
    bound.apply_defaults()
    seen = bound.arguments
    assert KeySignature(mixed, ("a", "b", "c"), ("session",)).values(args, kwargs) == (seen["a"], seen["b"], seen["c"])


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, "x", 2), {}, "too many positional arguments"),
        ((1,), {"z": 1}, "got an unexpected keyword argument 'z'"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
    ],
)
def test_illegal_calls(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    """A call that the function would refuse is a TypeError before anything is looked up."""
    with pytest.raises(TypeError, match=message):
        KeySignature(plain, ("a", "b"), ()).values(args, kwargs)


def test_self_is_implied() -> None:
    """self is neither in the key nor needs to be ignored."""
    signature = KeySignature(Owner.method, ("a",), ())
    assert signature.is_method
    assert signature.values((1,), {}) == (1,)


def starred(*a: int) -> str:
    """Take any number."""
    return ""


def double_starred(a: int, **rest: int) -> str:
    """Take any names."""
    return ""


def bare(a, b: int) -> str:  # type: ignore[no-untyped-def]
    """Lack an annotation."""
    return ""


@pytest.mark.parametrize(
    ("fn", "fields", "ignore", "message"),
    [
        (
            plain,
            ("a",),
            (),
            r"parameter 'b' is not in the key, so callers would share a value; add \{b\} to the template",
        ),
        (plain, ("a",), (), r"or ignore=\('b',\) if it does not change the value"),
        (plain, ("a", "b", "c"), (), "has no parameter 'c', which its template or ignore names"),
        (plain, ("a", "b"), ("sesion",), "has no parameter 'sesion', which its template or ignore names"),
        (plain, ("a",), "b", r"ignore must be a tuple of names, such as ignore=\('b',\)"),
        (starred, ("a",), (), r"\*a: int cannot be in a key; name its parameters"),
        (double_starred, ("a",), (), r"\*\*rest: int cannot be in a key; name its parameters"),
        (double_starred, ("a",), ("rest",), r"\*\*rest: int cannot be in a key"),
    ],
)
def test_refused(fn: Callable[..., Any], fields: tuple[str, ...], ignore: Any, message: str) -> None:
    """A parameter that would make callers share a value, or is none, is refused with name and fix."""
    with pytest.raises(DefinitionError, match=f"^{qualified_name(fn)}.*{message}"):
        KeySignature(fn, fields, ignore)


def test_annotation_needed() -> None:
    """A key field without an annotation is refused and told how one looks."""
    with pytest.raises(DefinitionError, match="parameter 'a' needs an annotation to be in the key, for example a: int"):
        KeySignature(bare, ("a", "b"), ()).field_types()


def test_postponed_annotations() -> None:
    """Annotations that are strings resolve in the module that wrote them."""
    expected = {"id": FieldType(kind="int"), "ref": FieldType(kind="uuid", nullable=True)}
    assert KeySignature(postponed.early.original, ("id", "ref"), ()).field_types() == expected
    assert resolve(postponed.early.original, "return") is postponed.Later


def test_annotations_behind_another_decorator() -> None:
    """A wrapper from another module keeps the annotations of the function within, resolved where that was written."""

    @functools.wraps(postponed.early.original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return postponed.early.original(*args, **kwargs)

    assert KeySignature(wrapper, ("id", "ref"), ()).field_types()["ref"].kind == "uuid"


def test_unresolved_field() -> None:
    """A key field whose type cannot be found is refused: its rendering must be known before the first call."""

    def load(a: "Missing") -> str:  # type: ignore[name-defined] # noqa: F821
        return ""

    with pytest.raises(
        DefinitionError, match=r"parameter 'a': its annotation does not resolve \(.*Missing.*\); import"
    ):
        KeySignature(load, ("a",), ()).field_types()


def test_only_the_fields_annotations_matter() -> None:
    """An ignored parameter may have any annotation, or one that does not resolve."""

    def load(a: int, session: "Missing") -> str:  # type: ignore[name-defined] # noqa: F821
        return ""

    assert KeySignature(load, ("a",), ("session",)).field_types() == {"a": FieldType(kind="int")}


def test_qualified_name() -> None:
    """Functions are named by module and qualified name."""
    assert qualified_name(uuid.UUID.__init__) == "uuid.UUID.__init__"
