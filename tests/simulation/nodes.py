"""Cache nodes: leases as in memory, behind a network that delays, loses and holds back, and lives that forget all."""

import math
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from leasecache._accel import Item
from leasecache.errors import NodeError, NodeTimeout
from leasecache.guard import NO_RUN, ring_mark
from leasecache.lease import Answer, Hit, Lease, Token
from leasecache.stores.base import Outcome
from leasecache.stores.memory import MemoryStore
from leasecache.stores.ring import ring
from tests.simulation.fakes import Descriptor, Descriptors
from tests.simulation.kernel import Kernel, Signal, current_owner

Command = Callable[[MemoryStore], Any]
OPEN: frozenset[str] = frozenset()


@dataclass(eq=False)
class Request:
    """A pipeline on its way: it may be carried out long after its sender has given up."""

    commands: Sequence[Command]
    run: int
    results: list[Any] = field(default_factory=list)
    done: bool = False
    failed: bool = False
    signal: Signal = field(default_factory=Signal)


class CacheNode:
    """One cache server."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel, self.name = kernel, name
        self.runs = 0
        self.up = True
        self.stopped = False  # by SIGSTOP: takes requests and carries them out later
        self.cut_off: frozenset[str] = OPEN  # from whom: "daemon", "clients"
        self.loses_replies = False
        self.moved = Signal()
        self._pace = 1 + (kernel.random.random() - 0.5) / 10  # of its clock
        self.restart()

    def restart(self) -> None:
        """Begin empty; connections of before are broken."""
        self.runs += 1
        self.engine = MemoryStore(clock=lambda: self.kernel.now * self._pace)
        self.engine._cas = self.kernel.random.getrandbits(60)  # no token of an earlier run is good
        self.up, self.stopped = True, False
        self.moved.notify(self.kernel)

    def kill(self) -> None:
        """Refuse connections, and forget everything."""
        self.runs += 1
        self.up = False
        self.moved.notify(self.kernel)

    def resume(self) -> None:
        """Go on after a stop."""
        self.stopped = False
        self.moved.notify(self.kernel)

    def exchange(self, who: str, commands: Sequence[Command], timeout: float = 0.4) -> list[Any]:
        """Carry out a pipeline, one command after the other with others between. Raises NodeError."""
        kernel = self.kernel
        if not self.up or (who in self.cut_off and kernel.random.random() < 0.7):
            kernel.latency()
            raise NodeError(f"{self.name}: connection refused")
        request = Request(commands, self.runs)
        if who not in self.cut_off or kernel.random.random() < 0.1:  # the last ones may still get through
            kernel.spawn(self._serve, request)
        kernel.until(lambda: request.done or request.failed, request.signal, timeout)
        if request.failed:
            raise NodeError(f"{self.name}: connection reset")
        if not request.done or who in self.cut_off or (self.loses_replies and kernel.random.random() < 0.5):
            raise NodeTimeout(f"{self.name}: no answer within {timeout} s")
        return request.results

    def _serve(self, request: Request) -> None:
        self.kernel.latency()
        for command in request.commands:
            while self.stopped and self.runs == request.run:
                self.kernel.wait((self.moved,), None)
                self.kernel.latency()
            if self.runs != request.run:
                request.failed = True
                request.signal.notify(self.kernel)
                return
            request.results.append(command(self.engine))
            self.kernel.latency(0.0005)
        request.done = True
        request.signal.notify(self.kernel)


class Errand:
    """An exchange that goes on by itself, and makes its descriptor readable when it is over."""

    until, events = math.inf, select.POLLIN

    def __init__(self, node: CacheNode, commands: Sequence[Command], descriptors: Descriptors) -> None:
        self.lost = node.kernel.random.random() < 0.02  # its connection had died before
        self._descriptor = Descriptor()
        self.socket = descriptors.add(self._descriptor)
        self._over, self._error = False, None
        self._record: bytes | None = None
        node.kernel.spawn(self._go, node, commands, owner=current_owner())

    def _go(self, node: CacheNode, commands: Sequence[Command]) -> None:
        try:
            self._record = None if self.lost else node.exchange("daemon", commands)[-1]
        except NodeError as error:
            self._error = error
        self._over = True
        self._descriptor.announce(node.kernel)

    def attend(self, now: float) -> None:
        """Do nothing."""

    def done(self) -> bool:
        """Whether it is over."""
        return self._over

    def exception(self) -> NodeError | None:
        """Return what went wrong."""
        return self._error

    def result(self) -> bytes | None:
        """Return the guard record."""
        return self._record

    def close(self) -> None:
        """Do nothing: what is under way is carried out."""


class DaemonNode:
    """What the daemon calls a node."""

    def __init__(self, node: CacheNode, descriptors: Descriptors) -> None:
        self._node, self.name, self._descriptors = node, node.name, descriptors

    def run(self) -> str:
        """Say that a restart forgets everything."""
        return NO_RUN

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Invalidate one key after the other."""
        self._node.exchange("daemon", [_invalidation(key, stale_for) for key in keys])

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:
        """Invalidate, then read the guard record."""
        commands = [_invalidation(key, stale_for) for key in keys]
        record: bytes | None = self._node.exchange("daemon", [*commands, look(guard_key)])[-1]
        return record

    def begin_invalidation(self, guard_key: bytes, keys: Sequence[bytes]) -> Errand | None:
        """Do the like without waiting, if there is a connection that nobody uses."""
        if self._node.kernel.random.random() < 0.3:
            return None
        return Errand(self._node, [*(_invalidation(key, 0) for key in keys), look(guard_key)], self._descriptors)

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: None = None) -> Answer:
        """Read, or take the lease."""
        answer: Answer = self._one(lambda engine: engine.lease_get(key, lease_for, refresh_ahead))
        return answer

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under a lease."""
        outcome: Outcome = self._one(lambda engine: engine.lease_set(lease, flags, body, ttl))
        return outcome

    def steal(self, key: bytes, token: Token, lease_for: float, mark: None = None) -> Answer:
        """Void a lease, then read."""
        answer: Answer = self._one(lambda engine: engine.steal(key, token, lease_for))
        return answer

    def release(self, lease: Lease) -> None:
        """Give a lease back."""
        self._one(lambda engine: engine.release(lease))

    def look(self, key: bytes, mark: None = None) -> Hit | None:
        """Look at a value."""
        hit: Hit | None = self._one(lambda engine: engine.look(key))
        return hit

    def _one(self, command: Command) -> Any:
        return self._node.exchange("daemon", [command])[0]

    def close(self) -> None:
        """Do nothing."""


class DaemonRing:
    """The store, as the daemon sees it."""

    def __init__(self, nodes: Sequence[CacheNode], namespace: str, descriptors: Descriptors) -> None:
        self.namespace = namespace
        self.nodes = [DaemonNode(node, descriptors) for node in nodes]
        self.mark = ring_mark([node.name for node in nodes])
        self._ring = ring([node.name for node in nodes])

    def node_for(self, key: bytes) -> DaemonNode:
        """Return the owner of a key."""
        return self.nodes[self._ring.owner(key)]

    def close(self) -> None:
        """Do nothing."""


def _invalidation(key: bytes, stale_for: float) -> Command:
    return lambda engine: engine.invalidate([key], stale_for)


def look(key: bytes) -> Command:
    """Return the command that reads a value without touching leases."""

    def seen(engine: MemoryStore) -> bytes | None:
        hit = engine.look(key)
        return None if hit is None else hit.value

    return seen


__all__ = ["CacheNode", "Command", "DaemonNode", "DaemonRing", "Item", "MemoryStore", "look"]
