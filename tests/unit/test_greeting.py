"""The first words with a memcached: whole, byte by byte, cut short, and not as they should be."""

import pytest

from leasecache import ConfigError, NodeError
from leasecache.errors import ProtocolError
from leasecache.stores import greeting
from leasecache.stores.greeting import Greeting, Terms

VERSION = b"VERSION 1.6.38\r\n"
SETTINGS = b"STAT maxbytes 67108864\r\nSTAT cas_enabled yes\r\nSTAT item_size_max 2097152\r\nEND\r\n"
FOUND = {b"maxbytes": b"67108864", b"cas_enabled": b"yes", b"item_size_max": b"2097152"}


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (VERSION, {"settings": False}, Greeting(b"1.6.38", {})),
        (VERSION + SETTINGS, {}, Greeting(b"1.6.38", FOUND)),
        (b"STORED\r\n" + VERSION + SETTINGS, {"authenticated": True}, Greeting(b"1.6.38", FOUND)),
        (b"STORED\r\n" + VERSION, {"authenticated": True, "settings": False}, Greeting(b"1.6.38", {})),
    ],
)
def test_whole_and_byte_by_byte(data: bytes, options: dict[str, bool], expected: Greeting) -> None:
    """An answer is read when its last byte is there, and not before."""
    assert [greeting.read(data[:i], **options) for i in range(len(data))] == [None] * len(data)
    assert greeting.read(data, **options) == expected


@pytest.mark.parametrize(
    ("data", "options", "kind", "message"),
    [
        (b"CLIENT_ERROR unauthenticated\r\n", {}, ConfigError, "wants a user and a password"),
        (b"CLIENT_ERROR unauthenticated\r\n", {"authenticated": True}, ConfigError, "refuses this user and password"),
        (b"ERROR Too many open connections\r\n", {}, NodeError, "Too many open connections"),
        (b"SERVER_ERROR out of memory\r\n", {}, NodeError, "out of memory"),
        (b"NOT_STORED\r\n", {"authenticated": True}, ProtocolError, "answer to the credentials"),
        (b"HTTP/1.1 400 Bad Request\r\n", {}, ProtocolError, "answer to version"),
        (VERSION + b"HD\r\nEND\r\n", {}, ProtocolError, "answer to stats settings"),
        (b"V" * (greeting.LIMIT + 1), {}, ProtocolError, "does not end"),
    ],
)
def test_answers_that_are_errors(data: bytes, options: dict[str, bool], kind: type[Exception], message: str) -> None:
    """Each is an error of whoever is at fault."""
    with pytest.raises(kind, match=message):
        greeting.read(data, **options)


@pytest.mark.parametrize(
    ("version", "explicit"),
    [(b"1.6.13", False), (b"1.6.26", False), (b"1.6.27", True), (b"1.6.45-dirty", True), (b"1.7.0", True)],
)
def test_the_version_decides_whose_cas_numbers_there_are(version: bytes, explicit: bool) -> None:
    """Since 1.6.27 a server takes numbers of its clients."""
    assert greeting.terms(Greeting(version, FOUND)) == Terms(explicit, 2**21)


@pytest.mark.parametrize(
    ("version", "settings", "proxied", "message"),
    [
        (b"1.6.12", FOUND, False, "version 1.6.12; leases need 1.6.13 or newer: upgrade it"),
        (b"unknown", FOUND, False, "version unknown; leases need"),
        (b"1.6.26", FOUND, True, "behind a proxy leases need 1.6.27 or newer: upgrade it or connect directly"),
        (b"1.6.38", {**FOUND, b"cas_enabled": b"no"}, False, "runs with -C"),
    ],
)
def test_servers_without_safe_leases(version: bytes, settings: dict[bytes, bytes], proxied: bool, message: str) -> None:
    """They are configuration errors that name the fix."""
    with pytest.raises(ConfigError, match=message):
        greeting.terms(Greeting(version, settings), proxied=proxied)


@pytest.mark.parametrize("size", [b"", b"-1", b"1073741825", b"9" * 11, b"9" * 5000, "²".encode()])
def test_sizes_that_no_server_has(size: bytes) -> None:
    """Nobody makes room for more than memcached can be told to store, nor reads a number of thousands of digits."""
    with pytest.raises(ProtocolError, match="item_size_max is"):
        greeting.terms(Greeting(b"1.6.38", {**FOUND, b"item_size_max": size}))
    assert greeting.terms(Greeting(b"1.6." + b"9" * 5000, {**FOUND, b"item_size_max": b"1073741824"})).explicit


def test_credentials_are_counted_in_bytes() -> None:
    """A password with characters of several bytes, or with line ends, stays one value of the set that presents it."""
    asked = greeting.request(("app", "p\u00e4ss\r\nversion"), settings=False)
    assert asked == b"set auth 0 -1 18\r\napp p\xc3\xa4ss\r\nversion\r\nversion\r\n"
