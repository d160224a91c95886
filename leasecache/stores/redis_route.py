"""Which node of a Redis cluster gets a command: slots, and redirections while the topology changes.

A generator yields hops that may go at once, each an exchange with one node, and is resumed with what came of each: the
replies, or the NodeError. Source: Redis cluster specification, "Redirection and resharding".

A survey has a connection to itself: any node knows the topology, but a lease may use only connections that were opened
to a primary. A replica that is promoted may have the token of a lease without the invalidation that voided it.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Container, Generator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ResponseError

from leasecache.errors import NodeError
from leasecache.stores import redis_wire as wire
from leasecache.stores.redis_leases import Exchange, Replies, Reply

ROUNDS = 5  # in which commands are sent, some of them on to another node
SURVEY_EVERY = 0.5  # s: a topology that is no older is not asked for again
SURVEYS = 16  # at once, each with a connection to itself

N = TypeVar("N")
T = TypeVar("T")
Address = tuple[str, int]


class Hop(NamedTuple):
    """An exchange with one node, by its name."""

    node: str
    exchange: Exchange


class Survey(NamedTuple):
    """The question who owns which slots, to one node over a connection of its own."""

    node: str


Ranges = Sequence[tuple[int, int, str, int]]  # first and last slot, host and port of the primary
Hops = Sequence[Hop | Survey]
Route = Generator[Hops, Sequence[Any], T]  # resumed with Replies, of a survey with Ranges; or with a NodeError


class Slots:
    """Who owns which slot, as far as this process knows."""

    def __init__(self, seeds: Sequence[str]) -> None:
        """`seeds` are the names, "host:port", of some nodes."""
        self._seeds = tuple(seeds)
        self.primaries: frozenset[str] = frozenset()  # the nodes that own slots
        self._owners: list[str | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._surveyed = self._failed = -SURVEY_EVERY  # when a survey began, when one got no answer; monotonic s
        self._running = 0  # surveys

    def owner(self, key: bytes) -> str | None:
        """Return the name of the node that owns the key's slot, None when we do not know any."""
        return self._owners[key_slot(key)]

    def move(self, slot: int, node: str) -> None:
        """Note who owns a slot now."""
        self._owners[slot] = node
        self.primaries |= {node}

    def survey(self, avoid: Container[str] = ()) -> Route[None]:
        """Ask one node after the other until one tells the topology, `avoid` last; unless that was just done.

        Whoever comes while the first survey runs makes one, too: without any topology there is nowhere to go.
        """
        now = time.monotonic()
        enough = self.primaries or self._running >= SURVEYS
        if now - (self._surveyed if enough else self._failed) < SURVEY_EVERY:
            return
        self._surveyed = now
        self._running += 1
        try:
            for node in sorted({*self.primaries, *self._seeds}, key=lambda node: node in avoid):
                [found] = yield [Survey(node)]
                if not isinstance(found, NodeError):
                    self._take(found, node)
                    return
            self._failed = time.monotonic()
        finally:
            self._running -= 1

    def _take(self, ranges: Ranges, node: str) -> None:
        owners: list[str | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, host, port in ranges:
            owners[first : last + 1] = [wire.node_name(host, port, node)] * (last + 1 - first)
        self._owners = owners
        self.primaries = frozenset(owner for owner in owners if owner is not None)


class Members(Generic[N]):
    """The nodes of a cluster that commands go to, made when they are needed."""

    def __init__(self, slots: Slots, make: Callable[[str], N]) -> None:
        """`make` returns a node, not connected yet, by its name."""
        self.by_name: dict[str, N] = {}
        self._make = make
        self._slots = slots
        self._primaries = slots.primaries

    def get(self, name: str) -> N:
        """Return the node of this name."""
        node = self.by_name.get(name)
        return node if node is not None else self.by_name.setdefault(name, self._make(name))

    def retired(self) -> list[N]:
        """Give up what is no longer a primary and return it: back in office, it may have missed invalidations."""
        if self._primaries is self._slots.primaries:
            return []
        self._primaries = self._slots.primaries
        gone = [self.by_name.pop(name, None) for name in set(self.by_name) - self._primaries]
        return [node for node in gone if node is not None]


def route(request: Exchange, slots: Slots) -> Route[Replies]:
    """Send each command to the owner of its key and follow redirections; return the replies in order.

    The reply to a command that no node has done is the NodeError that says why.
    """
    journey = _Journey(request, slots)
    for _ in range(ROUNDS):
        if journey.lost:
            yield from slots.survey(journey.failed)
        groups = journey.groups()
        found = yield [Hop(node, journey.exchange(positions, asking)) for (node, asking), positions in groups.items()]
        for ((node, asking), positions), replies in zip(groups.items(), found, strict=True):
            journey.arrive(node, positions, replies, asking)
        if not journey.left:
            break
    return journey.end()


def find_primary(service: str, sentinels: Sequence[str]) -> Generator[str, "Address | NodeError | None", Address]:
    """Return where the primary is that the first Sentinel knows; yields the name of each that is to be asked.

    Source: Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel". Raises NodeError.
    """
    failures = []
    for name in sentinels:
        found = yield name
        if found is not None and not isinstance(found, NodeError):
            return found
        failures.append(f"{name} {'does not know it' if found is None else f'fails ({found})'}")
    raise NodeError(f"no Sentinel tells where the primary of {service!r} is: {', '.join(failures)}")


class _Journey:
    """The commands of one exchange on their way through a cluster."""

    def __init__(self, request: Exchange, slots: Slots) -> None:
        self.left = list(range(len(request.commands)))  # positions of commands to be sent, again perhaps
        # whether the topology is not what we took it for
        self.lost = not slots.primaries or any(slots.owner(command.key) is None for command in request.commands)
        self.failed: set[str] = set()  # nodes
        self._request = request
        self._slots = slots
        self._replies: dict[int, Reply | None] = {}
        self._sent_on: dict[int, str] = {}  # position → the node that takes over the slot, for one command

    def groups(self) -> dict[tuple[str, bool], list[int]]:
        """Return what is left by node, and by whether the node has to be told that it was sent on."""
        groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for i in self.left:
            asked = self._sent_on.pop(i, None)
            owner = asked or self._slots.owner(self._request.commands[i].key)
            if owner is None:
                self._fail(i, NodeError("no node of the cluster tells who owns the slot of the key"))
            elif owner not in self.failed:
                groups[owner, asked is not None].append(i)
        self.left, self.lost = [], False
        return groups

    def exchange(self, positions: Sequence[int], asking: bool) -> Exchange:
        """Return the exchange of some commands with one node."""
        commands = [self._request.commands[i] for i in positions]
        if asking:
            commands = [each for command in commands for each in (wire.asking(), command)]
        return Exchange(commands, self._request.before)

    def arrive(self, node: str, positions: Sequence[int], replies: "Replies | NodeError", asking: bool) -> None:
        """Take the replies of a node; what it sent elsewhere, or could not do, is left for another round."""
        if isinstance(replies, NodeError):
            self.lost = True
            self.failed.add(node)
            for i in positions:
                self._fail(i, replies)
                self.left.append(i)
            return
        for i, reply in zip(positions, replies[1::2] if asking else replies, strict=True):
            self._replies[i] = reply
            error = None if reply is None else reply.value
            if isinstance(error, ResponseError) and wire.code(error) in ("MOVED", "ASK"):
                self._redirect(i, error, node)

    def end(self) -> list[Reply | None]:
        """Return the replies in the order of the commands."""
        return [self._replies[i] for i in range(len(self._request.commands))]

    def _redirect(self, i: int, error: ResponseError, node: str) -> None:
        slot, there = wire.redirection(error, node)
        self.left.append(i)
        if wire.code(error) == "ASK":
            self._sent_on[i] = there
        else:
            self._slots.move(slot, there)
            self.lost = True

    def _fail(self, i: int, error: NodeError) -> None:
        self._replies[i] = Reply(error, 0, 0, "")
