"""The floor on memcached: a blocking Python socket without a time limit, and nothing around it."""

import socket
from collections.abc import Sequence

from leasecache.stores import meta
from loadtests.bench.site import Site, host_port

LEASE_FOR = 10  # s, the default of a policy
TTL = 3600  # s
ENOUGH = 4096  # bytes that hold an answer with one value
BATCH = 65536
END = b"MN\r\n"


class RawSocket:
    """A connection that sends bytes and receives bytes."""

    def __init__(self, site: Site) -> None:
        self._socket = socket.create_connection(host_port(site.address("memcached")))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        site.at_end(self._socket.close)

    def store(self, key: bytes, value: bytes) -> None:
        """Store a value as a library would: with client flags that are not 0."""
        self.ask(b"ms %b %d T%d F1\r\n%b\r\n" % (key, len(value), TTL, value))

    def ask(self, request: bytes) -> bytes:
        """Send a request whose answer fits into one segment, and return that."""
        self._socket.sendall(request)
        return self._socket.recv(ENOUGH)

    def ask_many(self, request: bytes) -> bytes:
        """Send requests that end with a no-op, and return all answers."""
        self._socket.sendall(request)
        answers = self._socket.recv(BATCH)
        while not answers.endswith(END):
            answers += self._socket.recv(BATCH)
        return answers


def get(key: bytes) -> bytes:
    """Return the very request that a decorated function sends."""
    return meta.lease_get(key, LEASE_FOR)


def get_many(keys: Sequence[bytes]) -> bytes:
    """Return lease-gets of many keys that are answered with their numbers, and a no-op behind them."""
    numbered = [get(key).replace(b"\r\n", b" O%d q\r\n" % number) for number, key in enumerate(keys)]
    return b"".join(numbered) + meta.NOOP
