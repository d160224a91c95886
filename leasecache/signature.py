"""Which parameters of a function make its key: checked once, when the decorator runs."""

import inspect
import types
import typing
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from leasecache.errors import DefinitionError
from leasecache.keys import FieldType, field_type

_IMPLIED = ("self", "cls")


def qualified_name(fn: Callable[..., Any]) -> str:
    """Return `module.qualname`, as messages and rules name a function."""
    return f"{fn.__module__}.{fn.__qualname__}"


class KeySignature:
    """Maps a call's arguments to the values of the key fields."""

    def __init__(self, fn: Callable[..., Any], fields: Sequence[str], ignore: Sequence[str]) -> None:
        """Raises DefinitionError when a parameter is neither a key field nor ignored, or does not exist."""
        parameters = list(inspect.signature(fn).parameters.values())
        self.is_method = bool(parameters) and parameters[0].name in _IMPLIED
        self._parameters = parameters[1:] if self.is_method else parameters
        self._signature = inspect.Signature(self._parameters)
        self._key_signature = inspect.Signature([p for p in self._parameters if p.name in fields])
        self._fields = tuple(fields)
        self._fn = fn
        self._check(qualified_name(fn), [p.name for p in self._parameters], ignore)
        self.direct = len(fields) if self._in_field_order() else -1  # so many positional arguments are the key's fields

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the key fields' values, self and cls left out. Raises TypeError as the call itself would."""
        if not kwargs and len(args) == self.direct:
            return args
        return self._bind(self._signature, args, kwargs)

    def key_values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the same from the key's parameters alone, as `key`, `peek` and `invalidate` take them."""
        return self._bind(self._key_signature, args, kwargs)

    def call(self, args: tuple[Any, ...], others: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the call whose key parameters are `args`.

        Raises TypeError when `others` names one of those: it would be loaded, and stored under another value's key.
        """
        for name in self._fields:
            if name in others:
                shape = ", ".join(self._key_signature.parameters)
                function = qualified_name(self._fn)
                raise TypeError(f"{function}: get_many takes {name!r} as part of each argument, such as ({shape})")
        if self.direct >= 0:
            return args, others
        bound = self._key_signature.bind(*args)
        call = inspect.BoundArguments(self._signature, OrderedDict(bound.arguments | others))
        call.apply_defaults()  # drops names that are no parameters; the call itself shall refuse them
        unknown = {name: value for name, value in others.items() if name not in self._signature.parameters}
        return call.args, call.kwargs | unknown

    def _bind(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple([bound.arguments[name] for name in self._fields])

    def field_types(self) -> dict[str, FieldType]:
        """Return how each key field is rendered, from its annotation. Raises DefinitionError."""
        return {name: self._field_type(name) for name in self._fields}

    def _field_type(self, name: str) -> FieldType:
        where = f"{qualified_name(self._fn)}: parameter {name!r}"
        if name not in self._fn.__annotations__:
            raise DefinitionError(f"{where} needs an annotation to be in the key, for example {name}: int")
        try:
            return field_type(resolve(self._fn, name), where)
        except NameError as error:
            raise DefinitionError(f"{where}: its annotation does not resolve ({error}); import the type") from error

    def _in_field_order(self) -> bool:
        positional = [p.name for p in self._parameters if p.kind is not p.KEYWORD_ONLY]
        return tuple(positional) == self._fields and len(positional) == len(self._parameters)

    def _check(self, function: str, names: list[str], ignore: Sequence[str]) -> None:
        if isinstance(ignore, str):
            raise DefinitionError(f"{function}: ignore must be a tuple of names, such as ignore=({ignore!r},)")
        for name in (*self._fields, *ignore):
            if name not in names:
                raise DefinitionError(f"{function} has no parameter {name!r}, which its template or ignore names")
        for parameter in self._parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise DefinitionError(f"{function}: {parameter} cannot be in a key; name its parameters")
        left_out = [name for name in names if name not in self._fields and name not in ignore]
        if left_out:
            raise DefinitionError(
                f"{function}: parameter {left_out[0]!r} is not in the key, so callers would share a value; add "
                f"{{{left_out[0]}}} to the template, or ignore=({left_out[0]!r},) if it does not change the value"
            )


def resolve(fn: Callable[..., Any], name: str) -> Any:
    """Return one resolved annotation of `fn` ("return" for its value). Raises NameError while it does not resolve."""
    lone = types.SimpleNamespace(__annotations__={name: fn.__annotations__[name]})
    written_in = inspect.unwrap(fn)  # another decorator's wrapper copies the annotations but not the globals
    return typing.get_type_hints(lone, globalns=getattr(written_in, "__globals__", {}))[name]
