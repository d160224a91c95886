"""Decoding of pgoutput messages: what real servers send, and what none should."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache.errors import SourceError
from leasecache.invalidation.pgoutput import UNCHANGED, Begin, Insert, Truncate, Update, decode

GOLDEN = Path(__file__).parents[1] / "golden"
CAPTURED = [
    (bytes.fromhex(line.split(" ", 1)[0]), line.rstrip("\n").split(" ", 1)[1])
    for version in (16, 18)
    for line in (GOLDEN / f"pgoutput_{version}.txt").read_text(encoding="utf-8").splitlines()
]
ROW = struct.Struct("!cIch")  # the beginning of an Insert: type, relid, 'N', columns


@pytest.mark.parametrize(("payload", "expected"), CAPTURED)
def test_golden(payload: bytes, expected: str) -> None:
    """Every message that a real server sent decodes to what it decoded to when it was captured."""
    assert repr(decode(payload)) == expected


def test_the_golden_files_hold_every_type() -> None:
    """The captured messages are of every type that the servers of the lab send."""
    assert {payload[:1] for payload, _ in CAPTURED} == {bytes([letter]) for letter in b"BCRIUDTMY"}


@pytest.mark.parametrize("payload", [payload for payload, _ in CAPTURED])
def test_truncated_at_every_point(payload: bytes) -> None:
    """A message cut at any point is a SourceError, never a short value."""
    for length in range(len(payload)):
        with pytest.raises(SourceError):
            decode(payload[:length])


@pytest.mark.parametrize("payload", [payload for payload, _ in CAPTURED])
def test_trailing_bytes(payload: bytes) -> None:
    """Bytes after the end of a message are an error."""
    with pytest.raises(SourceError, match="too many"):
        decode(payload + b"\0")


@given(st.binary(max_size=200), st.sampled_from([b"", *(bytes([letter]) for letter in b"BCRIUDTMOY")]))
def test_no_bytes_crash_it(tail: bytes, letter: bytes) -> None:
    """Any bytes decode, or are a SourceError."""
    try:
        decode(letter + tail)
    except SourceError:
        return


@given(st.data())
def test_no_damage_crashes_it(data: st.DataObject) -> None:
    """A real message with some bytes replaced decodes, or is a SourceError."""
    payload = bytearray(data.draw(st.sampled_from(CAPTURED))[0])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(payload))
    except SourceError:
        return


def test_an_update_with_an_unchanged_value() -> None:
    """An unchanged large value is UNCHANGED, which neither null nor empty text equals."""
    payload = struct.pack("!cIch", b"U", 1, b"N", 3) + b"u" + b"n" + b"t" + struct.pack("!i", 0)
    assert decode(payload) == Update(1, None, None, (UNCHANGED, None, b""))


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"", "unknown type"),
        (b"S" + bytes(4), "unknown type"),  # streaming is never asked for
        (ROW.pack(b"I", 1, b"N", -1), "-1 items"),
        (ROW.pack(b"I", 1, b"K", 0), "'N'"),
        (ROW.pack(b"I", 1, b"N", 1) + b"t" + struct.pack("!i", -1), "-1 items"),
        (ROW.pack(b"I", 1, b"N", 1) + b"t" + struct.pack("!i", 2**31 - 1) + b"x", "wants 2147483647 bytes"),
        (ROW.pack(b"I", 1, b"N", 1) + b"b" + struct.pack("!i", 1) + b"x", "not text"),
        (b"T" + struct.pack("!iB", -5, 0), "-5 items"),
        (b"Y" + struct.pack("!I", 1) + b"public", "unterminated"),
        (b"Y" + struct.pack("!I", 1) + b"\xff\0x\0", "not UTF-8"),
        (b"R" + struct.pack("!I", 1) + b"public\0t\0x" + struct.pack("!h", 0), "belongs"),
    ],
)
def test_faults_are_named(payload: bytes, fault: str) -> None:
    """A message that breaks the protocol is refused with what is wrong with it."""
    with pytest.raises(SourceError, match=fault):
        decode(payload)


def test_small_messages() -> None:
    """Fields come in the order of the protocol."""
    assert decode(b"B" + struct.pack("!QqI", 5, -1, 7)) == Begin(final_lsn=5, committed_at=-1, xid=7)
    assert decode(ROW.pack(b"I", 9, b"N", 1) + b"t" + struct.pack("!i", 2) + b"ab") == Insert(9, (b"ab",))
    assert decode(b"T" + struct.pack("!iBII", 2, 1, 8, 9)) == Truncate(relids=(8, 9), options=1)
