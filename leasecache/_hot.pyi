"""Compiled twin of `leasecache._pure`: the meta-protocol reply reader and the wire."""

from socket import socket

class Reply:
    """One reply of the meta protocol (memcached doc/protocol.txt, "Meta Commands")."""

    def __init__(self, code: bytes, value: bytes | None = None) -> None: ...
    @property
    def code(self) -> bytes:
        """VA HD EN NF NS EX MN ME, or SERVER_ERROR."""

    @property
    def value(self) -> bytes | None:
        """VA: the value; ME and SERVER_ERROR: the rest of the line."""

    @property
    def flags(self) -> int:
        """f: client flags."""

    @property
    def cas(self) -> int:
        """c."""

    @property
    def ttl(self) -> int:
        """t: s left, −1 = no expiry."""

    @property
    def opaque(self) -> int:
        """O, −1 = none."""

    @property
    def won(self) -> bool:
        """W."""

    @property
    def stale(self) -> bool:
        """X."""

    @property
    def taken(self) -> bool:
        """Z."""

def parse_reply(data: bytes, start: int) -> tuple[Reply, int] | None:
    """Read the reply that begins at `start`: (reply, where the next begins), or None while bytes are missing.

    Raises ProtocolError on anything the protocol does not allow, ValueError on a start outside the data.
    """

class Wire:
    """Request and reply over a plain socket's descriptor, the GIL released; each exchange under one deadline."""

    def __init__(self, sock: socket, timeout: float) -> None: ...
    def exchange(self, request: bytes, count: int) -> list[Reply]:
        """Send `request` and return its `count` replies. Raises NodeTimeout, NodeError or ProtocolError."""

    def exchange_quiet(self, request: bytes) -> list[Reply]:
        """Send quiet commands ended by `mn` and return the replies before its MN. Raises like `exchange`."""

    def hit(self, request: bytes, flags: int) -> bytes | Reply:
        """Send a lease-get; return the value if it is a plain hit with these client flags, else the reply."""

    def hits(self, request: bytes, count: int, flags: int) -> list[bytes | Reply]:
        """Send `count` lease-gets; return for each what `hit` returns. Raises like `exchange`."""

    def guarded_hits(self, request: bytes, count: int, flags: int, expected: bytes) -> list[bytes | Reply | None]:
        """Send the read of a guard record and `count` lease-gets; return what `hits` does behind the first reply.

        That is None if it is `expected`, byte for byte. Raises like `exchange`.
        """

    def close(self) -> None:
        """Close the socket; never raises."""
