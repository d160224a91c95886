"""Where a side works: the addresses of servers, the value, and whatever must be closed in the end."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

VALUE_SIZE = 200  # bytes


class MissedError(Exception):
    """A side loaded its value again, so what was measured was no hit."""


class Site:
    """What the sides of a row share; what they open is closed with it."""

    def __init__(self, seed: int, address: Callable[[str], str]) -> None:
        """`address` gives "host:port" of the server of a name: "memcached", "redis"."""
        self.seed = seed
        self.value = random.Random(seed).randbytes(VALUE_SIZE)
        self.address = address
        self._stack = ExitStack()

    def at_end(self, close: Callable[[], Any]) -> None:
        """Call `close` in the end."""
        self._stack.callback(close)

    def loader(self, value: Any = None, times: int = 1) -> Callable[[], Any]:
        """Return a function that gives the value so many times; one call more raises MissedError."""
        answers = iter([self.value if value is None else value] * times)

        def load() -> Any:
            for answer in answers:
                return answer
            raise MissedError("the value was loaded again: no hit was measured")

        return load

    def __enter__(self) -> "Site":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def host_port(address: str) -> tuple[str, int]:
    """Split "host:port"."""
    host, _, port = address.rpartition(":")
    return host, int(port)
