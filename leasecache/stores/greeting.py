"""The first words with a memcached, without I/O: who we are, which version it is, how it was started.

Source: memcached doc/protocol.txt, "Authentication", "General-purpose statistics"; doc/meta: E since 1.6.27.
"""

from typing import NamedTuple

from leasecache.errors import ConfigError, NodeError, ProtocolError

LEAST_VERSION = (1, 6, 13)  # md C and ms c behave since then
EXPLICIT_VERSION = (1, 6, 27)  # takes CAS numbers from its clients
LARGEST = 2**30  # bytes of an item: what memcached's -I may be at most
LIMIT = 65536  # bytes a greeting may have; the settings are some 3 KB

Credentials = tuple[str, str]  # user, password


class Greeting(NamedTuple):
    """What a server says of itself."""

    version: bytes
    settings: dict[bytes, bytes]  # empty when they were not asked for


class Terms(NamedTuple):
    """What holds on a connection."""

    explicit: bool  # commands that make a CAS number may choose it
    item_size_max: int | None  # bytes; None when the settings were not asked for


def request(credentials: Credentials | None = None, *, settings: bool = True) -> bytes:
    """Ask for the version and the settings, after presenting the credentials.

    Presenting them looks like a set. It is of an item that has expired already: a server that asks for no password
    must not keep it.
    """
    asked = b"version\r\nstats settings\r\n" if settings else b"version\r\n"
    if credentials is None:
        return asked
    proof = " ".join(credentials).encode()
    return b"set auth 0 -1 %d\r\n%b\r\n%b" % (len(proof), proof, asked)


def read(data: bytes, *, authenticated: bool = False, settings: bool = True) -> Greeting | None:
    """Read the answer to `request`; None while bytes are missing. Raises ConfigError, NodeError."""
    lines = data.split(b"\r\n")[:-1]
    if len(data) > LIMIT:
        raise ProtocolError("a greeting that does not end")
    if lines:
        _check_first(lines[0], authenticated)
    if authenticated:
        lines = lines[1:]
    if not lines:
        return None
    word, _, version = lines[0].partition(b" ")
    if word != b"VERSION":
        raise ProtocolError(f"unexpected answer to version: {lines[0][:80]!r}")
    if not settings:
        return Greeting(version, {})
    return Greeting(version, _settings(lines[1:-1])) if lines[-1] == b"END" else None


def _check_first(line: bytes, authenticated: bool) -> None:
    if line.startswith(b"CLIENT_ERROR"):
        fix = "it refuses this user and password" if authenticated else "it wants a user and a password"
        raise ConfigError(f"{fix}; correct memcached://user:password@… in the URL")
    if line.startswith((b"ERROR", b"SERVER_ERROR")):
        raise NodeError(line[:80].decode(errors="replace"))
    if authenticated and line != b"STORED":
        raise ProtocolError(f"unexpected answer to the credentials: {line[:80]!r}")


def _settings(lines: list[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for line in lines:
        word, _, setting = line.partition(b" ")
        if word != b"STAT":
            raise ProtocolError(f"unexpected answer to stats settings: {line[:80]!r}")
        name, _, found[name] = setting.partition(b" ")
    return found


def terms(greeting: Greeting, *, proxied: bool = False) -> Terms:
    """Return what the server allows. Raises ConfigError when leases are not safe on it, naming the fix."""
    numbers = tuple(int(part[:9]) for part in greeting.version.split(b"-")[0].split(b".") if part.isdigit())
    version = greeting.version.decode(errors="replace")
    if numbers < LEAST_VERSION:
        raise ConfigError(f"it is version {version}; leases need 1.6.13 or newer: upgrade it")
    if proxied and numbers < EXPLICIT_VERSION:
        raise ConfigError(
            f"it is version {version}; behind a proxy leases need 1.6.27 or newer: upgrade it or connect directly"
        )
    if greeting.settings.get(b"cas_enabled") == b"no":
        raise ConfigError("it runs with -C (no CAS); leases need it: start it without -C")
    return Terms(numbers >= EXPLICIT_VERSION, _limit(greeting.settings) if greeting.settings else None)


def _limit(settings: dict[bytes, bytes]) -> int:
    text = settings.get(b"item_size_max", b"1048576")
    if not text.isdigit() or len(text) > 10 or int(text) > LARGEST:
        raise ProtocolError(f"item_size_max is {text[:80]!r}")
    return int(text)
