"""What waits for replies on the pure twin's multiplexed connection, and what it needs of those who ask."""

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol

from leasecache._pure import Reply
from leasecache.errors import NodeError

Read = Callable[[list[Reply], int, int, Any], Any]  # replies, epoch when asked, epoch of the connection, context


class Owner(Protocol):
    """Who opened the connection."""

    def lost(self, mux: Any, error: NodeError | None, failed: bool) -> None:
        """Take note that the connection is gone; called once.

        `error` is what those get who waited, None when nobody did; `failed` says that the server should be left alone.
        """

    def orphaned(self, mux: Any, result: Any) -> None:
        """Take what a cancelled caller no longer takes."""


class Epochs(Protocol):
    """Counts connections."""

    latest: int


class Guard(Protocol):
    """How requests of one function are guarded; `leasecache.stores.guarding` has it."""

    trust: Any  # what is `known` of the node's record; requests that share it share a reading of that
    request: bytes  # reads the record

    def usable(self) -> Any:
        """Return what is known (the `prefix` of keys, the `reply` that shows it) if it vouches for the function."""

    def see(self, reply: Reply) -> Any:
        """Return what a reply to `request` makes known, None for no record. Raises NodeError."""

    def judge(self, asked: Any, seen: Any, answer: Any) -> tuple[Any, NodeError | None, bool]:
        """Return the answer to a request under `asked`, when `seen` was read before it (known, None or an error).

        Then whether it is to be believed: None, or the error; and if not, whether to ask anew.
        """


class Pending:
    """A request on its way; awaiting it gives what its replies mean. Raises NodeError."""

    __slots__ = (
        "_deadline",
        *("_again", "_context", "_count", "_epoch", "_flags", "_future"),
        *("_guard", "_known", "_most", "_mux", "_read", "_record", "_replies", "_retry"),
    )

    def __init__(self, mux: Any, count: int, read: Read, context: Any, flags: int, retry: Any) -> None:
        self._future: asyncio.Future[Any] = mux.loop.create_future()
        self._count = count
        self._read = read
        self._context = context
        self._flags = flags
        self._epoch = mux._epochs.latest  # before the request is sent: a later connection may be to a restarted server
        self._deadline = time.monotonic() + mux._timeout
        self._replies: list[Reply] = []
        self._most = 0  # replies before MN, of a request that is answered quietly
        self._mux = mux
        self._retry = retry
        self._again = False  # it may be answered when it is asked anew
        self._guard: Guard | None = None
        self._known: Any = None  # the record under whose generation it was asked
        self._record: Record | None = None  # the reading of the record before it

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._future)
        except NodeError:
            if self._retry is None or not (self._again or self._mux.died):
                raise
        except BaseException:
            self._abandon()
            raise
        return (yield from self._retry(self._context[0]).__await__())

    def discard(self) -> None:
        """Leave the result to the owner: nobody waits for it."""
        self._future.cancel()

    def _abandon(self) -> None:
        """Leave the result to the owner, also one that came just before its caller was cancelled."""
        future = self._future
        if self._mux.loop.is_closed():  # a coroutine is thrown away that nobody can wake any more
            return
        if not future.cancel() and not future.cancelled() and future.exception() is None:
            self._mux._owner.orphaned(self._mux, future.result())


class Record:
    """A reading of the guard record, for the requests behind it in the same write."""

    __slots__ = ("_deadline", "guard", "seen")

    def __init__(self, guard: Guard, deadline: float) -> None:
        self.guard = guard
        self._deadline = deadline
        self.seen: Any = None  # Known, None or the error
