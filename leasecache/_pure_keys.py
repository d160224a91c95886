"""Pure-Python twin of `leasecache._keys`: the rendering of keys, and which node owns one.

The twin installs anywhere and is the oracle of the compiled code: both give the same bytes and the same errors.
"""

import datetime
import hashlib
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

KIND_INT, KIND_STR, KIND_BOOL, KIND_UUID, KIND_DATE, KIND_BYTES = range(6)
KEY_LIMIT = 220  # bytes of a logical key; leaves room under memcached's 250 for a generation
KEY_HEAD = 187  # KEY_LIMIT − "~" − 32 hex digits

_ESCAPES = [
    bytes([b]) if chr(b) in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-" else b"%%%02X" % b
    for b in range(256)
]
_PLAIN = re.compile(rb"[A-Za-z0-9._~-]*").fullmatch
_INT_TEXT = re.compile(rb"0|-?[1-9][0-9]*").fullmatch
_UUID_TEXT = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_HEX_TEXT = re.compile(rb"\\x(?:[0-9a-f]{2})*").fullmatch
_MASK = 2**64 - 1
_SHORTENED = re.compile(rb".{187}~[0-9a-f]{32}", re.DOTALL).fullmatch


def percent_encode(text: bytes) -> bytes:
    """Percent-encode every byte outside A-Za-z0-9._~- with upper-case hex digits."""
    return text if _PLAIN(text) else b"".join([_ESCAPES[b] for b in text])


def shorten(key: bytes) -> bytes:
    """Return `key`, or its first 187 bytes, `~` and the BLAKE2b-128 of the whole when it exceeds 220 bytes.

    A key of exactly 220 bytes that already looks shortened is shortened again; otherwise an argument could be
    chosen to spell the shortened form of another key.
    """
    if len(key) < KEY_LIMIT or (len(key) == KEY_LIMIT and not _SHORTENED(key)):
        return key
    return key[:KEY_HEAD] + b"~" + hashlib.blake2b(key, digest_size=16).hexdigest().encode()


def delete_requests(keys: Iterable[bytes], most: int) -> list[bytes]:
    """Return requests that delete these keys quietly, each of at most `most` bytes or for one key."""
    requests: list[bytes] = []
    size = most
    for key in keys:
        command = b"md %b q\r\n" % key
        if size + len(command) > most:
            requests.append(b"")
            size = 0
        requests[-1] += command
        size += len(command)
    return requests


class Renderer:
    """Renders the keys of one template, from Python arguments or from Postgres text, to the same bytes."""

    __slots__ = ("_enums", "_function", "_kinds", "_literals", "_names", "_nullable")

    def __init__(
        self,
        function: str,
        literals: tuple[bytes, ...],
        names: tuple[str, ...],
        kinds: tuple[int, ...],
        nullable: tuple[bool, ...],
        enums: tuple[type | None, ...],
    ) -> None:
        """Take one literal more than there are fields; `enums` holds the Enum class of a field or None."""
        if len(literals) != len(names) + 1 or not len(names) == len(kinds) == len(nullable) == len(enums):
            raise ValueError("literals, names, kinds, nullable and enums do not fit together")
        if not all(type(literal) is bytes for literal in literals):
            raise TypeError("literals must be bytes")
        if not all(0 <= kind < len(_PYTHON_KINDS) for kind in kinds):
            raise ValueError("a kind is unknown")
        self._function = function
        self._literals = literals
        self._names = names
        self._kinds = kinds
        self._nullable = nullable
        self._enums = enums

    def from_python(self, values: tuple[Any, ...]) -> bytes:
        """Render the key of typed Python arguments. Raises TypeError naming function and field."""
        if len(values) != len(self._names):
            raise TypeError(f"{self._function}: the key takes {len(self._names)} fields, not {len(values)}")
        parts = [self._literals[0]]
        for i, value in enumerate(values):
            parts += (self._python_field(i, value), self._literals[i + 1])
        return shorten(b"".join(parts))

    def from_many(self, arguments: list[Any]) -> list[bytes]:
        """Render a key of each; one that is no tuple is the only field. Raises like `from_python`."""
        return [self.from_python(values if isinstance(values, tuple) else (values,)) for values in arguments]

    def from_text(self, columns: Sequence[bytes | None]) -> bytes:
        """Render the key of Postgres text output, None for NULL. Raises ValueError on text not of the kind."""
        if len(columns) != len(self._names):
            raise ValueError(f"{self._function}: the key takes {len(self._names)} fields, not {len(columns)}")
        parts = [self._literals[0]]
        for i, text in enumerate(columns):
            parts += (b"!" if text is None else self._text_field(i, text), self._literals[i + 1])
        return shorten(b"".join(parts))

    def _python_field(self, i: int, value: Any) -> bytes:
        if value is None and self._nullable[i]:
            return b"!"
        enum = self._enums[i]
        if enum is not None:
            if not isinstance(value, enum):
                raise self._type_error(i, value, enum.__name__)
            value = value.value  # type: ignore[attr-defined]
        expected, encode = _PYTHON_KINDS[self._kinds[i]]
        try:
            encoded = encode(value)
        except UnicodeEncodeError:
            raise ValueError(f"{self._function}: key field {self._names[i]!r} holds a lone surrogate") from None
        if encoded is None:
            raise self._type_error(i, value, expected)
        return encoded

    def _text_field(self, i: int, text: bytes) -> bytes:
        encoded = _TEXT_KINDS[self._kinds[i]](text)
        if encoded is None:
            raise ValueError(f"{self._function}: {text[:80]!r} is not the Postgres text of field {self._names[i]}")
        return encoded

    def _type_error(self, i: int, value: Any, expected: str) -> TypeError:
        return TypeError(
            f"{self._function}: key field {self._names[i]!r} must be {expected}, not {type(value).__name__}"
        )


def _int(value: Any) -> bytes | None:
    return b"%d" % value if isinstance(value, int) and not isinstance(value, bool) else None


def _str(value: Any) -> bytes | None:
    return percent_encode(str.encode(value)) if isinstance(value, str) else None


def _bool(value: Any) -> bytes | None:
    return (b"t" if value else b"f") if isinstance(value, bool) else None


def _uuid(value: Any) -> bytes | None:
    return percent_encode(str(value).encode()) if isinstance(value, uuid.UUID) else None


def _date(value: Any) -> bytes | None:
    is_date = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    return percent_encode(value.isoformat().encode()) if is_date else None


def _bytes(value: Any) -> bytes | None:
    return percent_encode(value) if isinstance(value, bytes) else None


_PYTHON_KINDS: list[tuple[str, Callable[[Any], bytes | None]]] = [
    ("int", _int),
    ("str", _str),
    ("bool", _bool),
    ("UUID", _uuid),
    ("date", _date),
    ("bytes", _bytes),
]

_TEXT_KINDS: list[Callable[[bytes], bytes | None]] = [
    lambda text: text if _INT_TEXT(text) else None,
    percent_encode,
    lambda text: text if text in (b"t", b"f") else None,
    lambda text: text if _UUID_TEXT(text) else None,
    percent_encode,  # ISO dates pass unchanged; infinity, BC and five-digit years have no Python date
    lambda text: percent_encode(bytes.fromhex(text[2:].decode())) if _HEX_TEXT(text) else None,
]


class Ring:
    """Says which node owns a key: weighted rendezvous hashing, in whole numbers but for one division."""

    __slots__ = ("_even", "_seeds", "_weights")

    def __init__(self, seeds: Sequence[int], weights: Sequence[float]) -> None:
        """Take a 64-bit seed and a weight above 0 for each node."""
        if len(seeds) != len(weights) or not seeds:
            raise ValueError("a ring takes as many weights as seeds, at least one")
        if not all(weight > 0 for weight in weights):
            raise ValueError("weights must be above 0")
        self._seeds = tuple(seeds)
        self._weights = tuple(weights)
        self._even = len(set(weights)) == 1

    def __len__(self) -> int:
        return len(self._seeds)

    def owner(self, key: bytes) -> int:
        """Return the position of the node that owns `key`."""
        if len(self._seeds) == 1:
            return 0
        hashed = zlib.crc32(key)
        numbers = [mix(seed ^ hashed) for seed in self._seeds]
        if self._even:
            return numbers.index(max(numbers))
        scores = [(weight / _rarity(number), number) for weight, number in zip(self._weights, numbers, strict=True)]
        return scores.index(max(scores))


def mix(x: int) -> int:
    """Spread 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _rarity(number: int) -> int:
    """Return −log2(number / 2^64) in units of 2^-31, bit by bit, so that every machine finds the same."""
    if number == 0:
        return 64 << 31
    exponent = number.bit_length() - 1
    mantissa = number << (63 - exponent) >> 32  # in [2^31, 2^32)
    fraction = 0
    for _ in range(31):
        mantissa = mantissa * mantissa >> 31
        fraction <<= 1
        if mantissa >> 32:
            mantissa >>= 1
            fraction |= 1
    return ((64 - exponent) << 31) - fraction
