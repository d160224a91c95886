"""How values become bytes. The codec follows the return annotation; pickle only when asked for by name."""

import dataclasses
import functools
import hashlib
import inspect
import json
import pickle
import typing
import zlib
from collections import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from leasecache.errors import DefinitionError

# Client flags of a stored value: 4 bits codec (never 0: memcached's empty stub has flags 0), 1 bit zlib, 1 bit None,
# 2 bits unused, 24 bits fingerprint of the type and the policy's version.
_CODEC_SHIFT = 28
_COMPRESSED = 1 << 27
_NONE = 1 << 26
_FINGERPRINT = (1 << 24) - 1
_IDS = {"raw": 1, "str": 2, "msgpack": 3, "json": 4, "pickle": 5, "pydantic": 6}
_FIX = "annotate it precisely, or pass codec='json' or codec='pickle'"
RAW_FLAGS = _IDS["raw"] << _CODEC_SHIFT  # values of the low-level API: bytes without a type
UNCACHEABLE = 15 << _CODEC_SHIFT  # an empty item that says: the value is too large for the cache, load and do not wait
_UNUSED = 3 << 24
_NAMES = {number: name for name, number in _IDS.items()}
_HIDDEN = {
    "pickle": "loading a pickle runs code",
    "uncacheable": "it was too large to be stored, and this is the mark of it",
}
INFLATED_MAX = 64 * 2**20  # bytes; a kilobyte in the cache must not become a gigabyte in the reader

_OPEN = (Any, dict, list, set, frozenset, tuple, object, abc.Mapping, abc.MutableMapping, abc.Sequence, abc.Collection)


class DecodeError(Exception):
    """The stored bytes are not a value of this codec: another type, another version, or garbage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """Encodes one function's values; `fingerprint` changes with the type, so an old value is not misread."""

    name: str
    fingerprint: int
    dump: Callable[[Any], bytes]
    load: Callable[[bytes], Any]
    compress_over: int | None = None  # bytes of an encoded body above which zlib is tried, up to INFLATED_MAX

    @functools.cached_property
    def tag(self) -> int:
        """The client flags of a value that is neither None nor compressed."""
        return _IDS[self.name] << _CODEC_SHIFT | self.fingerprint

    def encode(self, value: Any) -> tuple[int, bytes]:
        """Return (client flags, body). None needs no body. Raises TypeError when the value does not fit.

        What cannot be read back would be loaded again by every caller, so it is read back once, here.
        """
        flags = self.tag
        if value is None:
            return flags | _NONE, b""
        try:
            body = self.dump(value)
        except Exception as error:  # it runs code of the value's class, and pickle raises nearly anything
            raise TypeError(str(error)) from error
        try:
            self.load(body)
        except Exception as error:
            raise TypeError(f"it could not be read back: {error}") from error
        if self.compress_over is not None and self.compress_over < len(body) <= INFLATED_MAX:
            packed = zlib.compress(body, 1)
            if len(packed) < len(body):
                return flags | _COMPRESSED, packed
        return flags, body

    def decode(self, flags: int, body: bytes) -> Any:
        """Return the value. Raises DecodeError when flags or body are not this codec's."""
        extra = flags ^ self.tag
        if extra & ~(_COMPRESSED | _NONE):
            raise DecodeError("stored by another codec, type or version")
        if extra & _NONE:
            return None
        try:
            return self.load(_inflate(body) if extra else body)
        except Exception as error:
            # Loading runs code of the value's class (__setstate__, validators, __post_init__), and garbage makes
            # parsers raise what they never promised (RecursionError, MemoryError). Whatever it is, it is a miss.
            raise DecodeError(f"{type(error).__name__}: {error}") from error


class Description(NamedTuple):
    """What the client flags of a stored value tell to those who do not know its type."""

    codec: str  # "uncacheable": the mark of a value too large; "foreign": leasecache did not write it
    compressed: bool
    is_none: bool


def describe(flags: int) -> Description:
    """Return what client flags tell."""
    name = "uncacheable" if flags == UNCACHEABLE else _NAMES.get(flags >> _CODEC_SHIFT)
    if name is None or flags & _UNUSED:
        return Description("foreign", False, False)
    return Description(name, bool(flags & _COMPRESSED), bool(flags & _NONE))


def decode_untyped(flags: int, body: bytes) -> Any:
    """Return a value without knowing its type: bytes, str, or what JSON can hold.

    Raises DecodeError when it cannot be read, or is a pickle: to load one is to run what it says.
    """
    codec, compressed, is_none = describe(flags)
    if codec not in _UNTYPED:
        raise DecodeError(_HIDDEN.get(codec, "leasecache did not write it"))
    if is_none:
        return None
    try:
        return _UNTYPED[codec](_inflate(body) if compressed else body)
    except Exception as error:  # as in Codec.decode
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _inflate(packed: bytes) -> bytes:
    stream = zlib.decompressobj()
    body = stream.decompress(packed, INFLATED_MAX + 1)  # at the very end of its room it would not see the stream's end
    if len(body) > INFLATED_MAX or not stream.eof:
        raise ValueError(f"cut short, or of more than {INFLATED_MAX} bytes")
    return body


_UNTYPED: dict[str, Callable[[bytes], Any]] = {
    "raw": bytes,
    "str": bytes.decode,
    "msgpack": lambda body: msgspec.to_builtins(msgspec.msgpack.decode(body), str_keys=True),
    "json": json.loads,
    "pydantic": json.loads,
}


def make_codec(annotation: Any, *, name: str | None, version: int, compress_over: int | None, where: str) -> Codec:
    """Return the codec of a return annotation, or the one asked for by `name` ("json", "pickle").

    Raises DefinitionError that begins with `where` when the annotation does not determine one.
    """
    if name is not None:
        kind, shape, dump, load = _explicit(name, where)
    else:
        kind, shape, dump, load = _inferred(annotation, where)
    digest = hashlib.blake2b(f"{kind}\0{version}\0{shape}".encode(), digest_size=3).digest()
    return Codec(
        name=kind,
        fingerprint=int.from_bytes(digest, "big") & _FINGERPRINT,
        dump=dump,
        load=load,
        compress_over=compress_over,
    )


_Parts = tuple[str, str, Callable[[Any], bytes], Callable[[bytes], Any]]


def _explicit(name: str, where: str) -> _Parts:
    if name == "json":
        return "json", "", lambda value: json.dumps(value, separators=(",", ":")).encode(), json.loads
    if name == "pickle":
        return "pickle", "", functools.partial(pickle.dumps, protocol=5), pickle.loads
    raise DefinitionError(f"{where}: codec={name!r} is unknown; use 'json', 'pickle', or none for the annotation's own")


def _inferred(annotation: Any, where: str) -> _Parts:
    bare = _without_none(annotation)
    if bare is bytes:
        return "raw", "", lambda value: _expect(value, bytes), bytes
    if bare is str:
        return "str", "", str.encode, bytes.decode
    if hasattr(bare, "model_validate_json"):
        return _pydantic(bare, where)
    _refuse_open(annotation, where)
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(annotation)
    record = _record(bare)
    dump = encoder.encode if record is None else lambda value: encoder.encode(_expect(value, record))
    return "msgpack", _shape(annotation), dump, decoder.decode


def _record(bare: Any) -> type | None:
    """Return the class whose instances an annotation wants; a dict of the same fields encodes alike, yet is none."""
    kind = typing.get_origin(bare) or bare
    if not isinstance(kind, type):
        return None
    is_record = dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct) or hasattr(kind, "_fields")
    return kind if is_record else None


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
    return value


def _pydantic(model: Any, where: str) -> _Parts:
    try:
        shape = json.dumps(model.model_json_schema(), sort_keys=True)
    except (RuntimeError, TypeError) as error:  # PydanticUserError is a RuntimeError, in older versions a TypeError
        raise DefinitionError(f"{where}: {model.__qualname__} has no JSON schema; {_FIX}") from error
    # Written and read by field name, as the two aliases of a field may differ; Pydantic before 2.11 reads aliases only.
    by_name = "by_name" in inspect.signature(model.model_validate_json).parameters
    load = functools.partial(model.model_validate_json, by_alias=False, by_name=True)
    return (
        "pydantic",
        shape,
        lambda value: model.model_dump_json(_expect(value, model), by_alias=not by_name, round_trip=True).encode(),
        load if by_name else model.model_validate_json,
    )


def _without_none(annotation: Any) -> Any:
    arms = [arm for arm in typing.get_args(annotation) if arm is not type(None)]
    is_optional = type(None) in typing.get_args(annotation)
    return arms[0] if is_optional and len(arms) == 1 else annotation


def _refuse_open(annotation: Any, where: str) -> None:
    bare = _without_none(annotation)
    if not typing.get_args(bare):
        bare = typing.get_origin(bare) or bare  # typing.Dict is dict
    if bare is None or bare is type(None) or bare in _OPEN or isinstance(bare, typing.TypeVar):
        raise DefinitionError(f"{where}: the return annotation does not say how to encode the value; {_FIX}")
    try:
        found = msgspec.inspect.type_info(annotation)
    except TypeError as error:
        raise DefinitionError(f"{where}: {error}; {_FIX}") from error
    _refuse_custom(found, where, set())


def _refuse_custom(info: Any, where: str, seen: set[int]) -> None:
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        raise DefinitionError(f"{where}: {info.cls.__qualname__} has no encoding of its own; {_FIX}")
    if isinstance(info, msgspec.inspect.AnyType):  # its values come back as what MessagePack has: a UUID as a str
        raise DefinitionError(f"{where}: the return annotation has a part that can be anything; {_FIX}")
    for child in _children(info):
        _refuse_custom(child, where, seen)


def _children(info: Any) -> list[Any]:
    if isinstance(info, msgspec.inspect.Field):
        return [info.type]
    found: list[Any] = []
    for name in ("types", "item_types", "fields"):
        found.extend(getattr(info, name, ()))
    found.extend(getattr(info, name) for name in ("item_type", "key_type", "value_type") if hasattr(info, name))
    return found


def _shape(annotation: Any) -> str:
    """Describe the type structurally: field names, types and defaults of everything it reaches."""
    schemas = msgspec.json.schema_components([annotation], ref_template="{name}")
    return _canonical(schemas, False)


def _canonical(schema: Any, in_default: bool) -> str:
    """Print a schema the same way in every process: what lists a set in a default is in no order of its own."""
    if isinstance(schema, dict):
        parts = [f"{name}:{_canonical(part, in_default or name == 'default')}" for name, part in schema.items()]
        return f"{{{','.join(sorted(parts))}}}"
    if isinstance(schema, (list, tuple, set, frozenset)):
        parts = [_canonical(part, in_default) for part in schema]
        return f"[{','.join(sorted(parts) if in_default else parts)}]"
    return repr(schema)
