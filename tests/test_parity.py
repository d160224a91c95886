"""The compiled hot path, its stubs and its pure twins offer the same names with the same parameters."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import leasecache
from leasecache import _accel
from tests.twins import COMPILED, PURE

Definition = ast.ClassDef | ast.FunctionDef


def stub(module: str) -> dict[str, Definition]:
    """Return what the stub of a compiled module defines."""
    tree = ast.parse((Path(leasecache.__file__).parent / f"{module}.pyi").read_text())
    return {node.name: node for node in tree.body if isinstance(node, Definition)}


STUBS = {module: stub(module) for module in PURE}
DEFINED = [(module, name) for module in STUBS for name in STUBS[module]]
CLASSES = [(module, name) for module, name in DEFINED if isinstance(STUBS[module][name], ast.ClassDef)]


def twins(module: str) -> list[Any]:
    """Return the pure twin of a compiled module, and the module itself if it is there."""
    return [PURE[module], *([COMPILED[module]] if COMPILED else [])]


def members(module: str, name: str) -> dict[str, ast.FunctionDef | ast.AnnAssign]:
    """Return the methods, properties and attributes that the stub gives a class, special ones apart."""
    node = STUBS[module][name]
    named = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    held = {ast.unparse(part.target): part for part in node.body if isinstance(part, ast.AnnAssign)}
    return {member: part for member, part in {**named, **held}.items() if not member.startswith("_")}


def parameters(function: Any) -> list[str]:
    """Return the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def test_the_switch_offers_what_the_stubs_have() -> None:
    """What is typed is exported by `leasecache._accel`, all of it from the same side."""
    chosen = COMPILED if _accel.IMPL == "c" else PURE
    for module, name in DEFINED:
        assert name in _accel.__all__
        assert getattr(_accel, name) is getattr(chosen[module], name)
        assert all(hasattr(twin, name) for twin in twins(module))


@pytest.mark.parametrize("module", COMPILED)
def test_the_stub_has_all_that_is_compiled(module: str) -> None:
    """A compiled module defines nothing public that its stub lacks."""
    compiled = COMPILED[module]
    own = {name for name, value in vars(compiled).items() if getattr(value, "__module__", "") == compiled.__name__}
    assert {name for name in own if not name.startswith("_")} == {*STUBS[module]}


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_classes(module: str, name: str) -> None:
    """Each class has the same public members in the stub and in both twins."""
    for twin in twins(module):
        public = {member for member in dir(getattr(twin, name)) if not member.startswith("_")}
        assert public == {*members(module, name)}


@pytest.mark.parametrize(("module", "name"), [place for place in DEFINED if place not in CLASSES])
def test_functions(module: str, name: str) -> None:
    """Each function has the same parameters in the stub and in both twins."""
    node = STUBS[module][name]
    assert isinstance(node, ast.FunctionDef)
    for twin in twins(module):
        assert parameters(getattr(twin, name)) == [argument.arg for argument in node.args.args]


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_methods(module: str, name: str) -> None:
    """Each method has the parameters that the pure twin has; the compiled one takes them by these names, too."""
    for member, node in members(module, name).items():
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue  # an attribute or property
        for twin in twins(module):
            with_names = inspect.getattr_static(getattr(twin, name), member)
            assert parameters(with_names) == [argument.arg for argument in node.args.args]


@pytest.mark.parametrize(("module", "name"), DEFINED)
def test_docstrings(module: str, name: str) -> None:
    """What the stub says of a name begins as in both twins."""
    said = (ast.get_docstring(STUBS[module][name]) or "").splitlines()[0]
    for twin in twins(module):
        if name != "Wire":  # the one class whose twins differ in kind
            assert (inspect.getdoc(getattr(twin, name)) or "").splitlines()[0] == said
