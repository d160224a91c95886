"""The compiled hot path, its stub and its pure twin offer the same names with the same parameters."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import leasecache
from leasecache import _accel, _pure
from tests.twins import TWINS

STUB = ast.parse((Path(leasecache.__file__).parent / "_hot.pyi").read_text())
Definition = ast.ClassDef | ast.FunctionDef
DEFINED = {node.name: node for node in STUB.body if isinstance(node, Definition)}
CLASSES = {name: node for name, node in DEFINED.items() if isinstance(node, ast.ClassDef)}


def members(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """Return the methods and properties that the stub gives a class, special ones apart."""
    return {part.name: part for part in node.body if isinstance(part, ast.FunctionDef) and part.name != "__init__"}


def parameters(function: Any) -> list[str]:
    """Return the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def test_the_switch_offers_what_the_stub_has() -> None:
    """What `leasecache._accel` exports is what is typed, and what both twins define."""
    assert {*_accel.__all__} == {*DEFINED, "IMPL"}
    for twin in TWINS:
        assert [name for name in DEFINED if not hasattr(twin, name)] == []


def test_the_stub_has_all_that_is_compiled() -> None:
    """The compiled module defines nothing public that the stub lacks."""
    for twin in TWINS[1:]:
        own = {name for name in vars(twin) if getattr(getattr(twin, name), "__module__", "") == twin.__name__}
        assert {name for name in own if not name.startswith("_")} == {*DEFINED}


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str) -> None:
    """Each class has the same public members in the stub and in both twins."""
    for twin in TWINS:
        assert {member for member in dir(getattr(twin, name)) if not member.startswith("_")} == {
            *members(CLASSES[name])
        }


@pytest.mark.parametrize("name", [name for name in DEFINED if name not in CLASSES])
def test_functions(name: str) -> None:
    """Each function has the same parameters in the stub and in both twins."""
    node = DEFINED[name]
    assert isinstance(node, ast.FunctionDef)
    for twin in TWINS:
        assert parameters(getattr(twin, name)) == [argument.arg for argument in node.args.args]


@pytest.mark.parametrize("name", CLASSES)
def test_methods(name: str) -> None:
    """Each method has the parameters that the pure twin has; the compiled one takes them by these names, too."""
    for member, node in members(CLASSES[name]).items():
        if node.decorator_list:
            continue  # a property
        assert parameters(getattr(getattr(_pure, name), member)) == [argument.arg for argument in node.args.args]
        for twin in TWINS[1:]:
            with_names = inspect.getattr_static(getattr(twin, name), member)
            assert parameters(with_names) == [argument.arg for argument in node.args.args]


@pytest.mark.parametrize("name", DEFINED)
def test_docstrings(name: str) -> None:
    """What the stub says of a name begins as in both twins."""
    said = (ast.get_docstring(DEFINED[name]) or "").splitlines()[0]
    for twin in TWINS:
        if name != "Wire":  # the one class whose twins differ in kind
            assert (inspect.getdoc(getattr(twin, name)) or "").splitlines()[0] == said
