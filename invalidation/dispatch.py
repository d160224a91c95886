"""Batched invalidation on every node at once, and the position up to which all of them have acknowledged.

Each node has a mailbox: keys that wait, and one batch under way in a thread of its own. While a batch is under way
further keys pile up and are de-duplicated, so a busy node gets large pipelines and an idle one gets a transaction at
once. A node that fails keeps its keys and is tried again with back-off; the others go on. All bookkeeping is done by
the caller's thread.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol

from leasecache.errors import NodeError
from leasecache.stores.base import Node

BATCH_KEYS = 5_000  # per pipeline, so that one stays well within a node's time limit
RETRY_FIRST, RETRY_MOST = 0.05, 1.0  # s


class Ring(Protocol):
    """Which node owns a key: the part of a store that dispatch needs."""

    @property
    def nodes(self) -> Sequence[Node]:
        """Return every node."""
        ...

    def node_for(self, key: bytes) -> Node:
        """Return the node that owns `key`."""
        ...


class Observer(Protocol):
    """Who wants to know how the nodes are doing."""

    def invalidated(self, node: str, keys: int) -> None:
        """Note that a node has acknowledged `keys` keys."""
        ...

    def node_failed(self, node: str, error: NodeError) -> None:
        """Note that a node has not acknowledged a batch."""
        ...

    def node_recovered(self, node: str) -> None:
        """Note that a node answers again."""
        ...


class Mailbox:
    """What one node still has to be told."""

    def __init__(self, node: Node, wake: Callable[[], None]) -> None:
        self.node = node
        self.acknowledged = 0  # everything before this position is done
        self._wake = wake
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"leasecache-{node.name}")
        self._waiting: dict[bytes, float] = {}
        self._waiting_position = 0
        self._sending: dict[bytes, float] = {}
        self._sending_position = 0
        self._batch: dict[bytes, float] = {}
        self._future: Future[None] | None = None
        self._delay = 0.0  # s before the next attempt, 0 = the last one succeeded
        self._retry_at = 0.0  # monotonic s

    @property
    def retry_at(self) -> float | None:
        """Return when (monotonic s) a node that failed is to be tried again, None when there is nothing to retry."""
        return self._retry_at if self._delay and self._future is None else None

    def __len__(self) -> int:
        """Return how many keys are not acknowledged."""
        return len(self._waiting) + len(self._sending) + len(self._batch)

    def put(self, key: bytes, stale_for: float) -> None:
        """Add a key; of several wishes for one key the strictest holds."""
        _add(self._waiting, key, stale_for)

    def advance(self, position: int) -> None:
        """Note that every key of the log before `position` has been put."""
        self._waiting_position = max(self._waiting_position, position)
        self._settle()

    def step(self, now: float, observer: Observer) -> None:
        """Collect a finished batch and begin the next one. Raises what a node raised, unless it is a NodeError."""
        if self._future is not None and self._future.done():
            self._collect(self._future, now, observer)
        if self._future is None and now >= self._retry_at:
            self._submit()

    def _collect(self, future: "Future[None]", now: float, observer: Observer) -> None:
        self._future = None
        error = future.exception()
        if error is None:
            observer.invalidated(self.node.name, len(self._batch))
            self._batch = {}
            if self._delay:
                self._delay = 0.0
                observer.node_recovered(self.node.name)
            self._settle()
            return
        for key, stale_for in self._batch.items():
            _add(self._sending, key, stale_for)
        self._batch = {}
        self._delay = min(max(self._delay * 2, RETRY_FIRST), RETRY_MOST)
        self._retry_at = now + self._delay
        if not isinstance(error, NodeError):
            raise error
        observer.node_failed(self.node.name, error)

    def _submit(self) -> None:
        if not self._sending:
            self._sending, self._waiting = self._waiting, {}
            self._sending_position = self._waiting_position
        if self._sending:
            self._batch = {key: self._sending.pop(key) for key in list(islice(self._sending, BATCH_KEYS))}
            self._future = self._pool.submit(_invalidate, self.node, self._batch)
            self._future.add_done_callback(lambda _: self._wake())

    def _settle(self) -> None:
        if self._batch or self._sending:
            return
        settled = self._sending_position if self._waiting else self._waiting_position
        self.acknowledged = max(self.acknowledged, settled)

    def restart(self) -> None:
        """Forget positions and keep keys: a new stream repeats the rest, perhaps on another timeline."""
        self.acknowledged = self._waiting_position = self._sending_position = 0

    def close(self) -> None:
        """Stop the thread once its batch is over; nothing new is begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Dispatcher:
    """The mailboxes of all nodes."""

    def __init__(self, ring: Ring, observer: Observer, wake: Callable[[], None]) -> None:
        self._ring = ring
        self._observer = observer
        self._mailboxes = {node.name: Mailbox(node, wake) for node in ring.nodes}
        self._position = 0

    @property
    def acknowledged(self) -> int:
        """The position W: everything before it has been acknowledged by every node that owns a key of it."""
        return min((box.acknowledged for box in self._mailboxes.values()), default=self._position)

    def __len__(self) -> int:
        """Return how many keys are not acknowledged."""
        return sum(len(box) for box in self._mailboxes.values())

    def put(self, keys: Mapping[bytes, float]) -> None:
        """Hand over the keys of a visible transaction, each with the seconds it may be served stale."""
        for key, stale_for in keys.items():
            self._mailboxes[self._ring.node_for(key).name].put(key, stale_for)

    def advance(self, position: int) -> None:
        """Note that the keys of every transaction before `position` have been put."""
        self._position = max(self._position, position)
        for box in self._mailboxes.values():
            box.advance(position)

    def restart(self) -> None:
        """Start counting positions anew for a new stream; keys that no node has acknowledged stay."""
        self._position = 0
        for box in self._mailboxes.values():
            box.restart()

    def step(self, now: float) -> None:
        """Collect what the nodes have answered and begin what can be begun. Call it whenever `wake` was called."""
        for box in self._mailboxes.values():
            box.step(now, self._observer)

    def next_retry(self, now: float) -> float | None:
        """Return the seconds until a failed node is tried again, None when no node has failed."""
        times = [at for box in self._mailboxes.values() if (at := box.retry_at) is not None]
        return max(0.0, min(times) - now) if times else None

    def close(self) -> None:
        """Stop every thread."""
        for box in self._mailboxes.values():
            box.close()


def _invalidate(node: Node, batch: Mapping[bytes, float]) -> None:
    groups: dict[float, list[bytes]] = {}
    for key, stale_for in batch.items():
        groups.setdefault(stale_for, []).append(key)
    for stale_for, keys in groups.items():
        node.invalidate(keys, stale_for)


def _add(keys: dict[bytes, float], key: bytes, stale_for: float) -> None:
    known = keys.get(key)
    if known is None or stale_for < known:
        keys[key] = stale_for
