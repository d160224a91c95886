"""Key templates: `"media:{media_id}"` and typed fields, rendered to the same bytes in Python and in the daemon."""

import datetime
import functools
import re
import string
import types
import typing
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from leasecache._accel import Renderer
from leasecache.errors import ConfigError, DefinitionError

KINDS = ("int", "str", "bool", "uuid", "date", "bytes")  # position = code in the renderers

_ALNUM = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_ENCODED = _ALNUM | frozenset("._~-%!")  # what an encoded field may emit; "!" is NULL
_EMITTED = {
    "int": frozenset("0123456789-!"),
    "bool": frozenset("tf!"),
    "uuid": frozenset("0123456789abcdef-!"),
    "str": _ENCODED,
    "date": _ENCODED,
    "bytes": _ENCODED,
}
_TYPES: dict[type, str] = {
    int: "int",
    str: "str",
    bool: "bool",
    uuid.UUID: "uuid",
    datetime.date: "date",
    bytes: "bytes",
}
_KEY = re.compile(rb"[!-~]{1,250}").fullmatch  # what memcached takes; rendered keys are shorter
_FIXES = {
    float: "two floats that print alike differ; use int or str",
    datetime.datetime: "its text depends on the time zone; use date, int or str",
}


@dataclass(frozen=True, kw_only=True)
class FieldType:
    """How one key field is rendered: its kind, whether None is allowed, and its Enum class if it has one."""

    kind: str
    nullable: bool = False
    enum: type[Enum] | None = None


@dataclass(frozen=True, kw_only=True)
class KeyTemplate:
    """Literal text and named, typed fields; `literals` has one element more than `fields`."""

    text: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]
    types: tuple[FieldType, ...]

    @classmethod
    def parse(cls, text: str, kinds: Mapping[str, str]) -> "KeyTemplate":
        """Parse a template whose field kinds are known, as in a rule. Raises DefinitionError."""
        unknown = sorted(set(kinds.values()) - set(KINDS))
        if unknown:
            raise DefinitionError(f"template {text!r}: unknown kind {unknown[0]!r}; kinds are {', '.join(KINDS)}")
        return cls.typed(text, {name: FieldType(kind=kind) for name, kind in kinds.items()})

    @classmethod
    def typed(cls, text: str, field_types: Mapping[str, FieldType]) -> "KeyTemplate":
        """Parse a template with typed fields. Raises DefinitionError naming what is wrong and the fix."""
        literals, fields = _split(text)
        missing = [name for name in fields if name not in field_types]
        if missing:
            raise DefinitionError(f"template {text!r}: field {missing[0]!r} has no type")
        return cls(text=text, literals=literals, fields=fields, types=tuple(field_types[name] for name in fields))

    @staticmethod
    def fields_of(text: str) -> tuple[str, ...]:
        """Return the field names of a template, in order. Raises DefinitionError when it is malformed."""
        return _split(text)[1]

    @property
    def kinds(self) -> dict[str, str]:
        """Field → kind, as a rule carries it."""
        return {name: field.kind for name, field in zip(self.fields, self.types, strict=True)}

    def renderer(self, namespace: str | None, function: str | None = None) -> Renderer:
        """Return the renderer of this template under `namespace`; `function` is named in its errors."""
        literals = [literal.encode() for literal in self.literals]
        literals[0] = key_prefix(namespace) + literals[0]
        return Renderer(
            function or self.text,
            tuple(literals),
            self.fields,
            tuple(KINDS.index(field.kind) for field in self.types),
            tuple(field.nullable for field in self.types),
            tuple(field.enum for field in self.types),
        )

    def overlaps(self, other: "KeyTemplate") -> bool:
        """Tell whether some key may belong to both templates (may err towards True, never towards False)."""
        return _intersect(self._pattern(), other._pattern())

    def _pattern(self) -> tuple["str | frozenset[str]", ...]:
        pattern: list[str | frozenset[str]] = list(self.literals[0])
        for field, literal in zip(self.types, self.literals[1:], strict=True):
            pattern += [_EMITTED[field.kind], *literal]
        return tuple(pattern)


def key_prefix(namespace: str | None) -> bytes:
    """Return the bytes that every key of a namespace begins with. Raises ConfigError on an unfit namespace."""
    if namespace is None:
        return b""
    if not namespace or not set(namespace) <= _ALNUM | set("._-"):
        raise ConfigError(f"namespace {namespace!r} must be letters, digits, '.', '_' or '-'")
    return namespace.encode() + b":"


def check_key(key: object) -> None:
    """Refuse what cannot be a key on the wire, where it could end a command and begin another."""
    if not isinstance(key, bytes):
        raise TypeError(f"a cache key is 1 to 250 bytes of visible ASCII, not {type(key).__name__}; see .key()")
    if not _KEY(key):
        raise ValueError(f"a cache key is 1 to 250 bytes of visible ASCII, not {key[:80]!r}; see .key()")


def field_type(annotation: Any, where: str) -> FieldType:
    """Return how a parameter with this annotation is rendered. Raises DefinitionError that begins with `where`."""
    bare, nullable = _strip_optional(annotation)
    while isinstance(bare, typing.NewType):
        bare = bare.__supertype__
        bare, inner = _strip_optional(bare)
        nullable = nullable or inner
    if isinstance(bare, type) and issubclass(bare, Enum):
        return FieldType(kind=_enum_kind(bare, where), nullable=nullable, enum=bare)
    known = bare if isinstance(bare, type) else object  # what is no type may not be hashable
    if known in _TYPES:
        return FieldType(kind=_TYPES[known], nullable=nullable)
    reason = _FIXES.get(known, "use int, str, bool, UUID, date, bytes, an Enum of int or str, or one of them | None")
    raise DefinitionError(f"{where} cannot be a key field as {_name(annotation)}: {reason}")


def _strip_optional(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    arms = [arm for arm in typing.get_args(annotation) if arm is not type(None)]
    return (arms[0], True) if len(arms) == 1 else (annotation, False)


def _enum_kind(enum_class: type[Enum], where: str) -> str:
    kinds = {_TYPES.get(type(member.value)) for member in enum_class}
    if kinds == {"int"}:
        return "int"
    if kinds == {"str"}:
        return "str"
    raise DefinitionError(f"{where}: {enum_class.__name__} needs values that are all int or all str to be in a key")


def _name(annotation: Any) -> str:
    is_plain = isinstance(annotation, type) and not typing.get_args(annotation)  # list[int] is a type in Python 3.10
    return annotation.__name__ if is_plain else str(annotation)


def _split(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    literals: list[str] = [""]
    fields: list[str] = []
    for literal, name in _parts(text):
        literals[-1] += literal
        if name is None:
            continue
        if fields and not set(literals[-1]) - _ENCODED:
            raise DefinitionError(
                f"template {text!r}: put ':' between {{{fields[-1]}}} and {{{name}}}; "
                f"{literals[-1]!r} can also come from a value, so two argument tuples could share a key"
            )
        if name in fields:
            raise DefinitionError(f"template {text!r} names field {name!r} twice")
        fields.append(name)
        literals.append("")
    _check_literals(text, literals)
    return tuple(literals), tuple(fields)


def _parts(text: str) -> "list[tuple[str, str | None]]":
    if not isinstance(text, str):
        raise DefinitionError(f"a template is a str such as 'media:{{media_id}}', not {text!r}")
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise DefinitionError(f"template {text!r} is malformed: {error}") from None
    for _, name, spec, conversion in parts:
        if spec or conversion or (name is not None and not name.isidentifier()):
            raise DefinitionError(f"template {text!r}: a field is a plain name such as {{media_id}}")
    return [(literal, name) for literal, name, _, _ in parts]


def _check_literals(text: str, literals: list[str]) -> None:
    if not text:
        raise DefinitionError("an empty template has no key; write for example 'media:{media_id}'")
    for character in "".join(literals):
        if not "!" <= character <= "~" or character in "{}":
            raise DefinitionError(
                f"template {text!r}: {character!r} cannot be in a key; use visible ASCII without braces"
            )
    if len("".join(literals)) > 120:
        raise DefinitionError(f"template {text!r} has more than 120 literal characters; keys are at most 220 bytes")


def _intersect(a: "tuple[str | frozenset[str], ...]", b: "tuple[str | frozenset[str], ...]") -> bool:
    """Tell whether two patterns of characters and repeated sets have a string in common."""

    @functools.cache
    def meet(i: int, j: int) -> bool:
        if i == len(a) and j == len(b):
            return True
        a_set = i < len(a) and isinstance(a[i], frozenset)
        b_set = j < len(b) and isinstance(b[j], frozenset)
        if (a_set and meet(i + 1, j)) or (b_set and meet(i, j + 1)):
            return True  # one field ends here
        if i == len(a) or j == len(b) or not set(a[i]) & set(b[j]):
            return False
        if a_set and b_set:
            return False  # equal to one of them ending first
        return meet(i if a_set else i + 1, j if b_set else j + 1)

    return meet(0, 0)
