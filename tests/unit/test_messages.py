"""Commit messages as bytes: what is written can be read, and whatever else arrives is named and harms nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasecache import messages
from leasecache._accel import shorten
from leasecache.errors import ConfigError
from leasecache.invalidation.router import Router
from leasecache.invalidation.stream import Loss, Touched
from leasecache.messages import MOST_BYTES, build_message, read_payload
from leasecache.rules import RuleSet
from leasecache.transaction import asend, send

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=250).map(str.encode)
_UUID = b"s:ta0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
TIMES = st.integers(0, 10**9) | st.floats(0, 10**6).map(lambda seconds: round(seconds, 6))


def test_the_payload_is_fixed() -> None:
    """Daemons of other versions read these bytes; changing them is a major release."""
    message = build_message({b"shop:media:1": 0, b"shop:user:7": 60, b"x": 0.5, b"y": 2592000.0})
    assert message.sql == "SELECT pg_logical_emit_message(true, 'leasecache', %s::text)"
    assert message.parameters == ("1\n0 shop:media:1\n60 shop:user:7\n0.5 x\n2592000 y",)


@given(st.dictionaries(KEYS, TIMES, max_size=20))
def test_what_is_written_can_be_read(keys: dict[bytes, float]) -> None:
    """Every key comes back with its seconds."""
    assert read_payload(build_message(keys).parameters[0].encode()) == (keys, frozenset(), None)


@pytest.mark.parametrize("key", [b"", b"a b", b"a\n0 b", b"\xff", b"x" * 251, "text", None])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    """A key that could end its line, or that no cache takes, is refused where it is sent."""
    with pytest.raises((TypeError, ValueError), match="a cache key is 1 to 250 bytes"):
        build_message({key: 0})


@pytest.mark.parametrize("stale_for", [-1, -0.1, float("nan"), float("inf"), 1e10])
def test_what_is_no_time_is_refused(stale_for: float) -> None:
    """Seconds that no daemon could read are refused where they are sent."""
    with pytest.raises(ValueError, match="must be from 0 to 1000000000 s"):
        build_message({b"a": stale_for})


def test_the_payload_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many keys as fit are sent and read, and not one more."""
    monkeypatch.setattr(messages, "MOST_BYTES", len("1\n0 key:0\n0 key:1"))
    keys = [b"key:0", b"key:1", b"key:2"]
    message = build_message(dict.fromkeys(keys[:2], 0))
    assert read_payload(message.parameters[0].encode()).fault is None
    with pytest.raises(ValueError, match="3 keys do not fit into the 17 bytes of a commit message; send several"):
        build_message(dict.fromkeys(keys, 0))
    assert read_payload(b"1" + b"\n0 key:0" * 3) == ({}, frozenset(), "25 bytes are more than 17")


@pytest.mark.parametrize(
    ("content", "keys", "fault"),
    [
        (b"1", {}, None),
        (b"1\n0 a\n5 a\n3 b\n1 b", {b"a": 0, b"b": 1}, None),
        (b"1\n0 a some=thing more", {b"a": 0}, None),
        (b"1\n0 a\n+ shop\n0 b\n-1 c", {b"a": 0, b"b": 0}, "unknown line b'+ shop'"),
        (b"1\n= 0 s:{int}:{str} 7 a%20%C3%BC", {b"s:7:a%20%C3%BC": 0}, None),
        (b"1\n= 2.5 s:{str}:x \n0 s::x", {b"s::x": 0}, None),
        (b"1\n= 0 s:{str} !\n= 0 t:{str} %21", {b"s:!": 0, b"t:%21": 0}, None),
        (b"1\n= 0 s:{bool}{uuid} t a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11 later", {_UUID: 0}, None),
        (b"1\n= 0 s:{bytes}:{date} %5Cx00ff 2024-02-29", {b"s:%00%FF:2024-02-29": 0}, None),
        (b"1\n= 0 s:{str} " + b"x" * 300, {shorten(b"s:" + b"x" * 300): 0}, None),
        (b"1\n= 0 s", {b"s": 0}, None),
        (b"1\n= 0 s:{int}", {}, "unknown line b'= 0 s:{int}'"),
        (b"1\n= 0 s:{int} x", {}, "unknown line b'= 0 s:{int} x'"),
        (b"1\n= 0 s:{float} 1", {}, "unknown line b'= 0 s:{float} 1'"),
        (b"1\n= 0 s:{} 1", {}, "unknown line b'= 0 s:{} 1'"),
        (b"1\n= 0 s:{str} %2", {}, "unknown line b'= 0 s:{str} %2'"),
        (b"2\n0 a", {}, "unknown version b'2'"),
        (b"", {}, "unknown version b''"),
        (b"\x00\xff", {}, r"unknown version b'\x00\xff'"),
        (b"1\r\n0 a", {}, r"unknown version b'1\r'"),
        (b"1\n0 a\xff", {}, r"unknown line b'0 a\xff'"),
        (b"1\n0 " + b"x" * 251, {}, "unknown line b'0 " + "x" * 78 + "'"),
        (b"1\n1e9 a", {}, "unknown line b'1e9 a'"),
        (b"1\n", {}, "unknown line b''"),
    ],
)
def test_reading(content: bytes, keys: dict[bytes, float], fault: str | None) -> None:
    """The strictest of several wishes holds, later versions' additions are passed over, and the rest is named."""
    assert read_payload(content) == (keys, frozenset(), fault)


def test_namespaces() -> None:
    """All of a namespace is one line, beside keys or alone; what is no namespace is refused where it is sent."""
    payload = build_message({b"shop:a": 1}, namespaces=["shop", "b.l-o_g"]).parameters[0]
    assert payload == "1\n1 shop:a\n* shop\n* b.l-o_g"
    assert read_payload(payload.encode() + b" later\n* a b\n* a:b\n*") == (
        {b"shop:a": 1},
        frozenset({b"shop", b"b.l-o_g", b"a"}),
        "unknown line b'* a:b'",
    )
    with pytest.raises(ConfigError, match="namespace 'a:b'"):
        build_message({}, namespaces=["a:b"])


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda rest: b"1\n0 a\n" + rest))
def test_garbage(content: bytes) -> None:
    """Any bytes give keys that a cache takes."""
    keys, _, fault = read_payload(content)
    assert fault is None or isinstance(fault, str)
    assert read_payload(build_message(keys).parameters[0].encode()).keys == keys


def test_a_payload_too_long_is_not_taken_apart() -> None:
    """What no application of ours sends costs the daemon nothing."""
    assert read_payload(b"1" + b"\n0 a" * MOST_BYTES).keys == {}


@pytest.mark.parametrize(
    ("namespace", "keys"), [("shop", {b"shop:a:1": 0.0}), (None, {b"shop:a:1": 0.0, b"shopping:a:1": 2.0})]
)
def test_keys_of_other_namespaces_are_passed_over(namespace: str | None, keys: dict[bytes, float]) -> None:
    """A daemon heeds the keys of its own namespace; of several wishes in one transaction the strictest holds."""
    touched = Touched()
    touched.name(b"shop:a:1", 30.0)
    router = Router(RuleSet(namespace=namespace, rules=()))
    assert router.hear(b"1\n0 shop:a:1\n2 shopping:a:1", touched) is None
    assert (touched.keys, touched.explicit, touched.everything) == ({}, keys, None)
    assert router.hear(b"?", touched) == "unknown version b'?'"


@pytest.mark.parametrize(
    ("namespace", "named", "everything"),
    [("shop", "shop", True), ("shop", "shopping", False), ("shop", "sho", False), (None, "shop", True)],
)
def test_all_of_a_namespace(namespace: str | None, named: str, everything: bool) -> None:
    """A message that gives up the daemon's namespace touches everything; another one's is passed over."""
    touched = Touched()
    router = Router(RuleSet(namespace=namespace, rules=()))
    assert router.hear(b"1\n* " + named.encode(), touched) is None
    assert touched.everything == ("namespace" if everything else None)
    assert touched.losses == ({Loss("namespace", "*", "*"): 1} if everything else {})


@pytest.mark.parametrize("conn", [object(), None, "postgresql://", 5])
def test_what_is_no_connection(conn: object) -> None:
    """Anything but a connection is refused, and the way out is named."""
    with pytest.raises(ConfigError, match=r"is no connection of psycopg, Django or SQLAlchemy; run the sql"):
        send(conn, build_message({b"a": 0}))
    with pytest.raises(ConfigError, match=r"is no connection"):
        asend(conn, build_message({b"a": 0})).send(None)
