"""Compiled twin of `leasecache._pure_mux`: the requests of many tasks over one connection."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from leasecache._hot import Reply
from leasecache._pure_pending import Epochs, Guard, Owner

Read = Callable[[list[Reply], int, int, Any], Any]

class Pending:
    """A request on its way; awaiting it gives what its replies mean. Raises NodeError."""

    def __await__(self) -> Generator[Any, None, Any]: ...
    def discard(self) -> None:
        """Leave the result to the owner: nobody waits for it."""

class Mux(asyncio.BufferedProtocol):
    """Sends the requests of all tasks of one event loop over one connection and gives each its replies."""

    loop: asyncio.AbstractEventLoop
    born: int
    mark: Callable[[], bytes]
    open: bool
    died: bool
    closed: asyncio.Future[None]
    def __init__(
        self,
        name: str,
        owner: Owner,
        epochs: Epochs,
        born: int,
        mark: Callable[[], bytes],
        timeout: float,
        parse: Callable[[bytes, int], tuple[Reply, int] | None] = ...,
        most: int = ...,
    ) -> None: ...
    @property
    def idle(self) -> bool:
        """Whether nothing waits for an answer."""

    @property
    def full(self) -> bool:
        """Whether so much waits to be sent that a caller should wait for `drained` first."""

    def ask(self, request: bytes, count: int, read: Read, context: Any) -> Pending:
        """Send a request; awaited, it gives what `read` makes of its `count` replies, or of those before MN."""

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done when the transport has taken what waits. Raises NodeError like a request."""

    def close(self) -> None:
        """End the connection when what was asked has been answered; `closed` is done then."""

    def detach(self) -> None:
        """Let go of the connection in a forked child, where the parent goes on using it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def eof_received(self) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...

class MuxReader:
    """Lease-gets with the same terms; called with a key it gives an awaitable, of the value alone for a plain hit."""

    def __init__(
        self,
        muxes: dict[asyncio.AbstractEventLoop, Mux],
        request: tuple[bytes, bytes, bytes],
        flags: int,
        read: Read,
        retry: Callable[[bytes], Awaitable[Any]],
        guard: Guard | None = None,
    ) -> None: ...
    def __call__(self, key: bytes) -> Awaitable[Any]: ...
