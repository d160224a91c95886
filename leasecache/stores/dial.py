"""Opening a connection to a memcached: address, TLS and greeting, each under one deadline."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError

from leasecache.errors import ConfigError, GuardError, LeasecacheError, NodeError, NodeTimeout
from leasecache.stores import greeting
from leasecache.stores.greeting import Credentials, Terms

T = TypeVar("T")
Address = tuple[str, int] | str

SETTINGS_FOR = 5.0  # s that a server's settings are taken to be what they were


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files in PEM form: the authority to trust, and our own certificate and key if the server wants one."""

    ca: str | None = None  # None = those that the system trusts
    cert: str | None = None
    key: str | None = None  # None = it is in `cert`

    def context(self) -> ssl.SSLContext:
        """Return a context that checks the server's certificate and name. Raises ConfigError."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as error:
            files = ", ".join(filter(None, (self.ca, self.cert, self.key)))
            raise ConfigError(f"cannot use the TLS files {files}: {error}") from error
        return context


class Dialer:
    """Opens connections to one memcached."""

    def __init__(
        self,
        name: str,
        *,
        timeout: float,
        connect_timeout: float,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        proxied: bool = False,
    ) -> None:
        """`name` is "host:port" or a socket's path; times in s. Opens nothing."""
        self.item_size_max: int | None = None  # bytes, as the server has said; None = not yet
        self._name = name
        self._address = node_address(name)
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._credentials = credentials
        self._proxied = proxied
        self._settings_until = 0.0  # monotonic s

    def dial(self) -> tuple[Any, Terms]:
        """Return a connected socket that has been greeted. Raises NodeError, ConfigError."""
        with self._named():
            sock = self._connected(time.monotonic() + self._connect_timeout)
            try:
                return sock, self._greet(sock, time.monotonic() + self._timeout)
            except BaseException:
                sock.close()
                raise

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """Give a pymemcache client over a new connection, whatever it does under one deadline. Raises NodeError."""
        sock, _ = self.dial()
        client = Client(("", 0), serde=_RawSerde())
        client.sock = _Limited(sock, time.monotonic() + self._timeout)
        with self._named():
            try:
                yield client
            finally:
                sock.close()

    def distrust(self) -> None:
        """Ask for the settings anew: a connection has ended, perhaps because the server was restarted with others."""
        self._settings_until = 0.0

    def _connected(self, deadline: float) -> Any:
        error: OSError = OSError("the name has no address")
        addresses = _resolve(self._address)
        for i, (family, address) in enumerate(addresses):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(_left(deadline) / (len(addresses) - i))
                sock.connect(address)
                return self._secured(sock, deadline)
            except OSError as failure:
                sock.close()
                error = failure
            except BaseException:
                sock.close()
                raise
        raise error

    def _secured(self, sock: Any, deadline: float) -> Any:
        if not isinstance(self._address, str):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return sock
        if self._context is None:  # not before gevent has patched what it patches
            self._context = self._tls.context()
        sock.settimeout(_left(deadline))
        name = "localhost" if isinstance(self._address, str) else self._address[0]
        return self._context.wrap_socket(sock, server_hostname=name)

    def _greet(self, sock: Any, deadline: float) -> Terms:
        """Say hello. The settings are most of what that costs, and so they are believed for a while."""
        found = self._converse(sock, time.monotonic() >= self._settings_until, deadline)
        if found.item_size_max is not None:
            self.item_size_max = found.item_size_max
            self._settings_until = time.monotonic() + SETTINGS_FOR
        return found

    def _converse(self, sock: Any, settings: bool, deadline: float) -> Terms:
        def read(data: bytes) -> greeting.Greeting | None:
            return greeting.read(data, authenticated=self._credentials is not None, settings=settings)

        try:
            found = _Limited(sock, deadline).ask(greeting.request(self._credentials, settings=settings), read)
        except ConnectionResetError:
            hint = "" if self._tls else "; does it expect TLS (memcacheds://)?"
            raise NodeError(f"hung up before it greeted{hint}") from None
        return greeting.terms(found, proxied=self._proxied)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turn whatever goes wrong into an error of ours that begins with the node's name."""
        label = f"memcached {self._name}"
        try:
            yield
        except GuardError:  # not of a connection, and names the node
            raise
        except LeasecacheError as error:
            raise type(error)(f"{label}: {error}") from error
        except TimeoutError as error:
            raise NodeTimeout(f"{label}: no answer in time") from error
        except ssl.SSLCertVerificationError as error:
            raise NodeError(f"{label}: {error.verify_message}; is ca= the authority that signed it?") from error
        except (OSError, MemcacheError) as error:
            raise NodeError(f"{label}: {error or type(error).__name__}") from error


class _Limited:
    """A connected socket of which all waiting together ends at a deadline."""

    def __init__(self, sock: Any, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self.close = sock.close

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def recv(self, size: int) -> bytes:
        """Return what comes next."""
        self._sock.settimeout(_left(self._deadline))
        data: bytes = self._sock.recv(size)
        return data

    def ask(self, request: bytes, read: Callable[[bytes], T | None]) -> T:
        """Send a request and return what `read` makes of all that came back, None meaning more. Raises OSError."""
        self.sendall(request)
        data = b""
        while (found := read(data)) is None:
            received = self.recv(65536)
            if not received:
                raise ConnectionResetError("closed by the server")
            data += received
        return found


class _RawSerde:
    """Gives pymemcache's readers the client flags beside the bytes."""

    def serialize(self, key: bytes, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: bytes, value: bytes, flags: int) -> tuple[int, bytes]:
        return flags, value


def converse(sock: Any, request: bytes, read: Callable[[bytes], T | None], timeout: float) -> T:
    """Ask over the socket of a wire, between two of its exchanges, and return what `read` makes of the answer.

    It may take `timeout` s. Raises NodeError; unless it is a Complaint, the connection is then unusable.
    """
    waits = sock.gettimeout()
    try:
        try:
            return _Limited(sock, time.monotonic() + timeout).ask(request, read)
        finally:
            sock.settimeout(waits)  # a compiled wire waits in its own way
    except NodeError:  # an OSError, too
        raise
    except TimeoutError as error:
        raise NodeTimeout(f"no answer within {timeout:g} s") from error
    except OSError as error:
        raise NodeError(f"connection broke: {error}") from error


def node_address(name: str) -> Address:
    """Return host and port, or the path of a Unix socket."""
    if name.startswith("/"):
        return name
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def _resolve(address: Address) -> list[tuple[Any, Any]]:
    if isinstance(address, str):
        return [(socket.AF_UNIX, address)]
    return [(found[0], found[4]) for found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM)]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
