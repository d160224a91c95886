"""Servers of the lab for one row, started when a side asks for them."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from leasecache.lab import MemcachedServer, RedisServer, Server
from leasecache.lab.demo.timing import on_one_cpu

KINDS: dict[str, Callable[[], Server]] = {
    "memcached": partial(MemcachedServer, "-t", "1"),  # one thread serves every side, or each has the luck of its own
    "redis": RedisServer,
}


class Servers:
    """A context that ends every server it has started."""

    def __init__(self) -> None:
        self._running: dict[str, Server] = {}
        self._stack = ExitStack()

    def address(self, name: str) -> str:
        """Return "host:port" of a server. Raises ConfigError when its program is not installed."""
        if name not in self._running:
            self._running[name] = self._stack.enter_context(KINDS[name]())
        return self._running[name].address

    def pin(self) -> None:
        """Keep this thread and the servers on one CPU until the end.

        Waking another CPU takes longer than the work, and not always equally long: round trips come in two kinds.
        """
        for pid in [server.pid for server in self._running.values()] or [os.getpid()]:
            self._stack.enter_context(on_one_cpu(pid))

    def __enter__(self) -> "Servers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
