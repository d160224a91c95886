"""What can be told of a stored value without its type, and that no body expands without limit."""

import contextlib
import dataclasses
import datetime
import pickle
import zlib
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache import codecs
from leasecache.codecs import RAW_FLAGS, Codec, DecodeError, Description, decode_untyped, describe, make_codec

COMPRESSED, NONE = 1 << 27, 1 << 26


@dataclasses.dataclass
class Media:
    """A dataclass with what JSON has no type for."""

    id: int
    taken: datetime.date
    thumbnail: bytes
    ratings: dict[int, float]


class Account(pydantic.BaseModel):
    """A Pydantic model."""

    name: str


def codec(annotation: Any = None, **options: Any) -> Codec:
    """Make a codec for tests."""
    return make_codec(annotation, **{"name": None, "version": 0, "compress_over": None, "where": "load", **options})


MEDIA = Media(7, datetime.date(2024, 2, 29), b"\xff\x00", {5: 0.5})


@pytest.mark.parametrize(
    ("made", "value", "name", "seen"),
    [
        (codec(bytes), b"\xff\x00", "raw", b"\xff\x00"),
        (codec(str), "schön", "str", "schön"),
        (codec(Media), MEDIA, "msgpack", {"id": 7, "taken": "2024-02-29", "thumbnail": "/wA=", "ratings": {"5": 0.5}}),
        (codec(list[int]), [1, 2], "msgpack", [1, 2]),
        (codec(name="json"), {"a": [1, None]}, "json", {"a": [1, None]}),
        (codec(Account), Account(name="ada"), "pydantic", {"name": "ada"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_without_their_type(made: Codec, value: object, name: str, seen: object) -> None:
    """Flags name the codec, and bytes, text or what JSON can hold comes out of the body."""
    flags, body = made.encode(value)
    assert describe(flags) == Description(name, False, False)
    assert decode_untyped(flags, body) == seen
    flags, body = made.encode(None)
    assert describe(flags) == Description(name, False, True)
    assert decode_untyped(flags, body) is None


def test_compressed_values_without_their_type() -> None:
    """A compressed body says so, and is expanded."""
    flags, body = codec(str, compress_over=10).encode("a" * 1000)
    assert describe(flags) == Description("str", True, False)
    assert decode_untyped(flags, body) == "a" * 1000


class Trap:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("extra", [0, NONE])
def test_pickles_are_not_loaded(extra: int) -> None:
    """A pickle is described, never loaded."""
    flags = codec(name="pickle").encode(None)[0] & ~NONE | extra
    assert describe(flags).codec == "pickle"
    with pytest.raises(DecodeError, match="runs code"):
        decode_untyped(flags, pickle.dumps(Trap()))


@pytest.mark.parametrize("flags", [0, 16, 7 << 28, 15 << 28 | 1, RAW_FLAGS | 1 << 24, RAW_FLAGS | 1 << 25])
def test_foreign_flags(flags: int) -> None:
    """Flags that leasecache never gives are somebody else's value, which is not read."""
    assert describe(flags) == Description("foreign", False, False)
    with pytest.raises(DecodeError, match="did not write"):
        decode_untyped(flags, b"x")


@given(flags=st.integers(0, 2**32 - 1), body=st.one_of(st.binary(max_size=60), st.just(b"[" * 200_000)))
def test_garbage_is_a_decode_error(flags: int, body: bytes) -> None:
    """Any flags over any body give a value or a DecodeError."""
    with contextlib.suppress(DecodeError):
        decode_untyped(flags, body)


def test_what_can_be_stored_compressed_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body is compressed only up to the limit of its reader, and up to there it is read."""
    monkeypatch.setattr(codecs, "INFLATED_MAX", 5000)
    made = codec(bytes, compress_over=10)
    for size, compressed in ((4999, True), (5000, True), (5001, False)):
        flags, body = made.encode(b"a" * size)
        assert describe(flags).compressed is compressed
        assert made.decode(flags, body) == decode_untyped(flags, body) == b"a" * size


@pytest.mark.parametrize(
    "body", [zlib.compress(b"a" * 5001), zlib.compress(b"a" * 10**8), zlib.compress(b"a" * 50)[:-1], b"garbage", b""]
)
def test_bodies_do_not_expand_without_limit(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """A compressed body that is too large, cut short or garbage is a DecodeError."""
    monkeypatch.setattr(codecs, "INFLATED_MAX", 5000)
    made = codec(bytes)
    for decode in (made.decode, decode_untyped):
        with pytest.raises(DecodeError):
            decode(made.tag | COMPRESSED, body)
