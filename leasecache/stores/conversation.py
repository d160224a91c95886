"""Opening an asyncio connection to a memcached, and one classic command after the other over it."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from leasecache.errors import LeasecacheError, NodeError, NodeTimeout, ProtocolError
from leasecache.stores import greeting
from leasecache.stores.dial import Tls, node_address
from leasecache.stores.greeting import Credentials, Terms
from leasecache.stores.within import within

T = TypeVar("T")


class Conversation(asyncio.Protocol):
    """Asks and reads until the answer is whole."""

    def __init__(self, timeout: float) -> None:
        """`timeout` is the s that one answer may take."""
        self.most = greeting.LIMIT  # bytes that one answer may have
        self._timeout = timeout
        self._transport: Any = None
        self._data = b""
        self._read: Callable[[bytes], Any] = bool
        self._answer: asyncio.Future[Any] | None = None
        self._ended: NodeError | None = None

    async def ask(self, request: bytes, read: Callable[[bytes], T | None]) -> T:
        """Send a request and return what `read` makes of all that came back, None meaning more. Raises NodeError."""
        if self._ended is not None:
            raise self._ended
        self._data, self._read = b"", read
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await within(self._timeout, answer)
        except asyncio.TimeoutError:
            raise NodeTimeout(f"no answer within {self._timeout:g} s") from None

    def hand_over(self, protocol: asyncio.BufferedProtocol) -> None:
        """Let another protocol have the connection from here."""
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See whether the answer is whole."""
        if self._answer is None or self._answer.done():
            return
        self._data += data
        try:
            answer = self._read(self._data)
            if answer is None and len(self._data) > self.most:
                raise ProtocolError(f"an answer that does not end within {self.most} bytes")
        except LeasecacheError as error:
            self._answer.set_exception(error)
        else:
            if answer is not None:
                self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the answer that will not come."""
        self._ended = NodeError(f"connection broke: {error}" if error else "connection closed by the server")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._ended)


class Caller:
    """Opens connections to one memcached from an event loop: the asynchronous twin of `Dialer`."""

    def __init__(
        self,
        name: str,
        *,
        timeout: float,
        connect_timeout: float,
        tls: Tls | ssl.SSLContext | None,
        credentials: Credentials | None,
        proxied: bool,
    ) -> None:
        """`name` is "host:port" or a socket's path; times in s. Opens nothing."""
        self._label = f"memcached {name}"
        self._address = node_address(name)
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._credentials = credentials
        self._proxied = proxied

    async def call(self) -> tuple[Conversation, Terms]:
        """Connect and greet. Raises NodeError, or ConfigError when leases cannot work there."""
        try:
            return await self._greeted()
        except LeasecacheError as error:
            raise type(error)(f"{self._label}: {error}") from error
        except ssl.SSLCertVerificationError as error:
            raise NodeError(f"{self._label}: {error.verify_message}; is ca= the authority that signed it?") from error
        except asyncio.TimeoutError as error:
            raise NodeTimeout(f"{self._label}: no connection within {self._connect_timeout:g} s") from error
        except OSError as error:
            raise NodeError(f"{self._label}: {error or type(error).__name__}") from error

    async def _greeted(self) -> tuple[Conversation, Terms]:
        conversation = Conversation(self._timeout)
        try:
            await within(self._connect_timeout, self._connect(conversation))
            found = await conversation.ask(greeting.request(self._credentials), self._read_greeting)
            terms = greeting.terms(found, proxied=self._proxied)
            conversation.most += terms.item_size_max or 0
            return conversation, terms
        except BaseException:
            conversation.abort()
            raise

    def _read_greeting(self, data: bytes) -> greeting.Greeting | None:
        return greeting.read(data, authenticated=self._credentials is not None)

    async def _connect(self, conversation: Conversation) -> None:
        loop = asyncio.get_running_loop()
        if self._context is None and self._tls is not None:
            self._context = self._tls.context() if isinstance(self._tls, Tls) else self._tls
        if isinstance(self._address, str):
            name = "localhost" if self._context else None
            await loop.create_unix_connection(
                lambda: conversation, self._address, ssl=self._context, server_hostname=name
            )
        else:
            await loop.create_connection(lambda: conversation, *self._address, ssl=self._context)
