"""Which parameters of a function make its key: checked once, when the decorator runs."""

import inspect
import types
import typing
from collections import OrderedDict, abc
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from leasecache.errors import DefinitionError
from leasecache.keys import FieldType, field_type

_IMPLIED = ("self", "cls")
_BATCHES = (abc.Iterable, abc.Collection, abc.Sequence, abc.Set, list, tuple, set, frozenset)
_MAPPINGS = (abc.Mapping, abc.MutableMapping, dict)

Loading = tuple[tuple[Any, ...], Callable[[], Any]]  # the values of the key fields, and the call that loads


class Signature(Protocol):
    """What the declaration of a cached function needs of its signature."""

    is_method: bool

    def field_types(self) -> dict[str, FieldType]: ...
    def value_type(self) -> Any: ...
    def key_values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]: ...


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
        if not kwargs and len(args) == self.direct:
            return args
        return self._bind(self._key_signature, args, kwargs)

    def loads(self, load: Callable[..., Any], arguments: Iterable[Any], others: dict[str, Any]) -> dict[Any, Loading]:
        """Return {argument: key values and load}; an argument is the key's only parameter, or a tuple of all."""
        self._check_others(others)
        found: dict[Any, Loading] = {}
        for argument in arguments:
            args = argument if isinstance(argument, tuple) else (argument,)
            positional, named = self._call(args, others)
            found[argument] = self.key_values(args, {}), partial(load, *positional, **named)
        return found

    def _call(self, args: tuple[Any, ...], others: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the call whose key parameters are `args`."""
        if self.direct >= 0:
            return args, others
        bound = bind(self._key_signature, self._fn, args, {})
        call = inspect.BoundArguments(self._signature, OrderedDict(bound.arguments | others))
        call.apply_defaults()
        return call.args, call.kwargs

    def _check_others(self, others: dict[str, Any]) -> None:
        """Refuse what a load would refuse, also when all is cached. Raises TypeError.

        A key parameter among `others` would be loaded, and stored under another value's key.
        """
        what = f"{qualified_name(self._fn)}: get_many"
        for name in others:
            if name in self._fields:
                shape = ", ".join(self._key_signature.parameters)
                raise TypeError(f"{what} takes {name!r} as part of each argument, such as ({shape})")
            if name not in self._signature.parameters:
                raise TypeError(f"{what} got an unexpected keyword argument {name!r}")
        for parameter in self._parameters:
            given = parameter.name in self._fields or parameter.name in others
            if not given and parameter.default is parameter.empty:
                kind = "keyword-only" if parameter.kind is parameter.KEYWORD_ONLY else "positional"
                raise TypeError(f"{what} is missing 1 required {kind} argument: {parameter.name!r}")

    def _bind(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        bound = bind(signature, self._fn, args, kwargs)
        bound.apply_defaults()
        return tuple([bound.arguments[name] for name in self._fields])

    def field_types(self) -> dict[str, FieldType]:
        """Return how each key field is rendered, from its annotation. Raises DefinitionError."""
        return {name: self._field_type(name) for name in self._fields}

    def value_type(self) -> Any:
        """Return the annotation of one value. Raises NameError while it does not resolve."""
        return resolve(self._fn, "return")

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
        for name in ignore:
            if name in self._fields:
                raise DefinitionError(f"{function}: parameter {name!r} is in the key; take it out of ignore")
        for parameter in self._parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise DefinitionError(f"{function}: {parameter} cannot be in a key; name its parameters")
        left_out = [name for name in names if name not in self._fields and name not in ignore]
        if left_out:
            raise DefinitionError(
                f"{function}: parameter {left_out[0]!r} is not in the key, so callers would share a value; add "
                f"{{{left_out[0]}}} to the template, or ignore=({left_out[0]!r},) if it does not change the value"
            )


class BatchSignature:
    """The signature of a function that loads many values: a batch of what is in the key, then ignored parameters."""

    def __init__(self, fn: Callable[..., Any], fields: Sequence[str], ignore: Sequence[str]) -> None:
        """Raises DefinitionError when the function does not take a batch first, or its template has not one field."""
        self._function = qualified_name(fn)
        if len(fields) != 1:
            shape = "'user:{user_id}'"
            raise DefinitionError(f"{self._function}: the template of cached_many has one field, such as {shape}")
        parameters = list(inspect.signature(fn).parameters.values())
        self.is_method = bool(parameters) and parameters[0].name in _IMPLIED
        self._parameters = parameters[1:] if self.is_method else parameters
        self._signature = inspect.Signature(self._parameters)
        self._fn = fn
        self._field = fields[0]
        self._check(ignore)

    def key_values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the one argument that is in the key. Raises TypeError when there is another number of them."""
        if len(args) != 1 or kwargs:
            raise TypeError(f"{self._function}: takes one {self._field}, not {len(args) + len(kwargs)} arguments")
        return args

    def split(
        self, load: Callable[..., Any], skip: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], Callable[[list[Any]], Any]]:
        """Return the batch of a call, duplicates once, and what loads a list like it. `skip` arguments come first."""
        bound = bind(self._signature, self._fn, args[skip:], kwargs)
        name = self._parameters[0].name
        batch = list(dict.fromkeys(bound.arguments[name]))

        def load_these(batch: list[Any]) -> Any:
            call = inspect.BoundArguments(self._signature, OrderedDict(bound.arguments | {name: batch}))
            return load(*args[:skip], *call.args, **call.kwargs)

        return batch, load_these

    def field_types(self) -> dict[str, FieldType]:
        """Return how the key field is rendered, from the annotation of the batch. Raises DefinitionError."""
        name = self._parameters[0].name
        where = f"{self._function}: parameter {name!r}"
        if name not in self._fn.__annotations__:
            raise DefinitionError(f"{where} needs an annotation, for example {name}: Sequence[int]")
        try:
            annotation = resolve(self._fn, name)
        except NameError as error:
            raise DefinitionError(f"{where}: its annotation does not resolve ({error}); import the type") from error
        elements = [a for a in typing.get_args(annotation) if a is not Ellipsis]
        if typing.get_origin(annotation) not in _BATCHES or len(elements) != 1:
            raise DefinitionError(f"{where} must be annotated as a batch of keys, for example {name}: Sequence[int]")
        return {self._field: field_type(elements[0], where)}

    def value_type(self) -> Any:
        """Return the annotation of one value, of `Mapping[key, value]`. Raises NameError while it does not resolve."""
        annotation = resolve(self._fn, "return")
        arguments = typing.get_args(annotation)
        if typing.get_origin(annotation) not in _MAPPINGS or len(arguments) != 2:
            raise DefinitionError(f"{self._function} must return a mapping, for example -> Mapping[int, User]")
        return arguments[1]

    def _check(self, ignore: Sequence[str]) -> None:
        if isinstance(ignore, str):
            raise DefinitionError(f"{self._function}: ignore must be a tuple of names, such as ignore=({ignore!r},)")
        if not self._parameters or self._parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise DefinitionError(f"{self._function} must take the batch first, for example user_ids: Sequence[int]")
        names = [parameter.name for parameter in self._parameters[1:]]
        for name in ignore:
            if name not in names:
                raise DefinitionError(f"{self._function} has no parameter {name!r} after the batch, which ignore names")
        left_out = [name for name in names if name not in ignore]
        if left_out:
            raise DefinitionError(
                f"{self._function}: parameter {left_out[0]!r} is not in the key, so callers would share a value; "
                f"pass ignore=({left_out[0]!r},) if it does not change the value"
            )


def bind(
    signature: inspect.Signature, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    """Return the arguments by the names of `signature`. Raises TypeError that names `fn`."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{qualified_name(fn)}: {error}") from None


def resolve(fn: Callable[..., Any], name: str) -> Any:
    """Return one resolved annotation of `fn` ("return" for its value). Raises NameError while it does not resolve."""
    lone = types.SimpleNamespace(__annotations__={name: fn.__annotations__[name]})
    written_in = inspect.unwrap(fn)  # another decorator's wrapper copies the annotations but not the globals
    return typing.get_type_hints(lone, globalns=getattr(written_in, "__globals__", {}))[name]
