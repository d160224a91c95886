"""memcached under a guard: what is believed, what is asked anew, and what goes to the loader instead."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leasecache import _accel, _pure
from leasecache.errors import GuardError, NodeError
from leasecache.guard import wire_key
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Ask, Fill, Hit, Lease, Refused, Stale, Stored, Token, Wait
from leasecache.stores import memcached_link, meta
from leasecache.stores.errand import Errand
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.routed import RoutedStore
from leasecache.stores.trust import ATTEMPTS
from tests.fix_fork import in_a_child
from tests.fix_guard import Voucher
from tests.fix_stores import use_twin

FLAGS = 0x10000001
MARK, OTHER = b"0123456789ab", b"ba9876543210"  # of functions
LONG = 3600  # s: a lease that does not run out while the test lasts
Way = Callable[[MemcachedNode, bytes], Any]


class Guarded:
    """A node of a guarded store, and who vouches for it."""

    def __init__(self, server: MemcachedServer, namespace: str) -> None:
        self.server = server
        self.namespace = namespace
        self.node, self.vouching = self.opened(), MemcachedNode(server.address)
        self.voucher = Voucher(self.vouching, namespace=namespace)

    def opened(self, **options: Any) -> MemcachedNode:
        """Return a node of another process's, so to speak: it knows nothing yet."""
        node = MemcachedNode(self.server.address, **options)
        RoutedStore([node], self.namespace, guarded=True)
        return node

    def fill(self, key: bytes, value: bytes | None = None, ttl: float = 600) -> None:
        """Store a value, by default the key itself."""
        lease = self.node.lease_get(key, LONG, 0, MARK)
        assert isinstance(lease, Lease)
        assert self.node.lease_set(lease, FLAGS, key if value is None else value, ttl) == Stored()


@pytest.fixture(params=["memcached-c", "memcached-python", "recent-c", "recent-python", "python sockets"])
def guarded(request: pytest.FixtureRequest, key: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    """A guarded node: with CAS numbers of the server's and ours, by either twin, and over sockets of Python."""
    kind, _, implementation = request.param.partition("-")
    use_twin(implementation or "c", monkeypatch)
    if kind == "python sockets":
        monkeypatch.setattr(MemcachedNode, "_wire", lambda self, sock: _pure.Wire(sock, 1, _accel.parse_reply))
    server = request.getfixturevalue("shared_memcached" if kind == "memcached" else "recent_memcached")
    guarded = Guarded(server, f"t{key.decode()[5:]}")
    yield guarded
    guarded.node.close()
    guarded.vouching.close()


def one(node: MemcachedNode, key: bytes) -> Any:
    return node.lease_get(key, LONG, 0, MARK)


def reader(node: MemcachedNode, key: bytes) -> Any:
    return node.reader(LONG, 0, FLAGS, MARK)(key)


def batch(node: MemcachedNode, key: bytes) -> Any:
    [answer] = node.batch_reader(LONG, 0, FLAGS, MARK)([key])
    return answer


def many(node: MemcachedNode, key: bytes) -> Any:
    [answer] = node.lease_get_many([Ask(key, LONG, 0, MARK)])
    return answer


def steal(node: MemcachedNode, key: bytes) -> Any:
    return node.steal(key, Token(1, 2**62, 0, 5), LONG, MARK)


def look(node: MemcachedNode, key: bytes) -> Any:
    return node.look(key, MARK)


WAYS = {way.__name__: way for way in (one, reader, batch, many, steal, look)}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def plain(answer: Any) -> Any:
    """Return the value of a hit, what a record lacks, the type of anything else."""
    if isinstance(answer, GuardError):
        return answer.missing
    return answer.value if isinstance(answer, Hit) else answer if isinstance(answer, bytes) else type(answer)


def verdict(way: Way, node: MemcachedNode, key: bytes = b"key") -> Any:
    """Return what a guarded read gives: a value, the type of an answer, or what the record lacks."""
    try:
        return plain(way(node, key))
    except GuardError as error:
        return plain(error)


def leave_a_stub(voucher: Voucher) -> None:
    """Do what a daemon does that is about to write the first record, and no more."""
    voucher.withdraw()
    voucher.node.lease_get(voucher.key, 60)


DISBELIEVED: dict[str, tuple[Callable[[Voucher], object], str]] = {
    "absent": (Voucher.withdraw, "record"),
    "garbage": (lambda voucher: voucher.put(b"1 2 - x"), "record"),
    "empty": (lambda voucher: voucher.put(b""), "record"),
    "of a later version": (lambda voucher: voucher.put(b"2 5 7 - a b"), "record"),
    "of another run": (lambda voucher: voucher.write(run="some"), "record"),
    "a stub": (leave_a_stub, "record"),
    "voided": (lambda voucher: voucher.node.invalidate([voucher.key], stale_for=60), "record"),
    "without our ring": (lambda voucher: voucher.write(rings=frozenset([b"0" * 12])), "ring"),
    "without our rule": (lambda voucher: voucher.write(rules=frozenset([OTHER])), "rule"),
}


@each_way
def test_only_what_a_record_vouches_for_is_believed(guarded: Guarded, way: Way) -> None:
    """With a record values are served; when it is gone, or does not name us, they are not, until it is back.

    Guard: `Trust.judge`, for every answer that came with another record than it was asked under.
    """
    node, voucher = guarded.node, guarded.voucher
    assert verdict(way, node) == "record", "there is none yet"
    voucher.vouch(marks=[MARK])
    guarded.fill(b"key")
    for what, (spoil, missing) in DISBELIEVED.items():
        assert verdict(way, node) == b"key", what
        spoil(voucher)
        assert verdict(way, node) == missing, what
        assert verdict(way, node) == missing, what
        voucher.withdraw()
        voucher.write()
    assert verdict(way, node) == b"key"
    errors = node.errors
    assert (errors.timeout, errors.broken, errors.protocol, errors.down, errors.down_since) == (0, 0, 0, 0, None)


def test_record_that_runs_out(guarded: Guarded) -> None:
    """When nobody renews the record, nothing is believed any more, however it is asked for."""
    guarded.voucher.vouch(marks=[MARK])
    guarded.fill(b"key")
    assert [verdict(way, guarded.node) for way in WAYS.values()] == [b"key"] * len(WAYS)
    guarded.voucher.write(ttl=1)
    wait_until(lambda: guarded.vouching.look(guarded.voucher.key) is None, 60, "the record to go")
    assert [verdict(way, guarded.node) for way in WAYS.values()] == ["record"] * len(WAYS)


@each_way
def test_another_generation_is_asked_for_anew(guarded: Guarded, way: Way) -> None:
    """After a bump nothing of the old generation is served, and what a call has won there goes back at once.

    Guard: the comparison of generations in `GuardedBatch`, and the leases that its `take` returns.
    """
    node, voucher = guarded.node, guarded.voucher
    old = voucher.vouch(marks=[MARK]).generation
    guarded.fill(b"key")
    voucher.bump()
    assert verdict(way, node) == (type(None) if way is look else Lease)
    voucher.write(generation=old)  # which no daemon does: to see what is there
    assert verdict(way, node) == b"key"
    voucher.bump()
    assert verdict(way, node, b"other") == (type(None) if way is look else Lease)
    assert isinstance(guarded.vouching.lease_get(wire_key(old, b"other"), 1), Lease), "nobody holds it"


@each_way
def test_what_was_won_without_a_record_goes_back(guarded: Guarded, way: Way) -> None:
    """A lease won in the request that found no record is free when the same generation is vouched for again.

    Guard: the leases that `GuardedBatch.take` returns.
    """
    guarded.voucher.vouch(marks=[MARK])
    guarded.fill(b"key")
    assert verdict(way, guarded.node) == b"key"
    guarded.voucher.withdraw()
    assert verdict(way, guarded.node, b"new") == "record"
    guarded.voucher.write()
    assert verdict(way, guarded.node, b"new") == (type(None) if way is look else Lease)


def test_value_that_only_fits_under_the_logical_key(guarded: Guarded) -> None:
    """A value is too large when it is so with the key that it has on the node. Guard: `item_size`."""
    guarded.voucher.vouch(marks=[MARK])
    limit = int(guarded.vouching._dialer.item_size_max or 0)
    for spare, outcome in ((-1, Refused), (0, Stored)):
        lease = one(guarded.node, b"large")
        size = limit - meta.ITEM_OVERHEAD - len(wire_key(guarded.voucher.generation, b"large")) - spare
        assert isinstance(guarded.node.lease_set(lease, FLAGS, b"x" * size, 600), outcome)
        guarded.vouching.invalidate([wire_key(guarded.voucher.generation, b"large")])


@each_way
def test_renewed_record_costs_nothing(guarded: Guarded, way: Way) -> None:
    """A record of the same generation that says more is believed in the same request. Guard: `begun` of a batch."""
    guarded.voucher.vouch(marks=[MARK])
    guarded.fill(b"key")
    assert verdict(way, guarded.node) == b"key"
    guarded.voucher.vouch(marks=[OTHER])
    asked = int(guarded.vouching.stats()["cmd_get"])
    assert verdict(way, guarded.node) == b"key"
    spent = int(guarded.vouching.stats()["cmd_get"]) - asked
    assert spent == 2, "the record and the value, once each"


@each_way
def test_generation_that_never_settles(guarded: Guarded, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that meets another generation each time it asks gives up after a few. Guard: ATTEMPTS."""
    guarded.voucher.vouch(marks=[MARK])
    guarded.fill(b"key")
    exchange, bumps = memcached_link.MemcachedLink._exchange, []

    def bump_first(node: Any, *args: Any) -> Any:
        if node is guarded.node:
            bumps.append(guarded.voucher.bump())
        return exchange(node, *args)

    monkeypatch.setattr(memcached_link.MemcachedLink, "_exchange", bump_first)
    guarded.voucher.bump()  # for the reader, which has its own way to a connection
    assert verdict(way, guarded.node) == (type(None) if way is look else "record")
    assert len(bumps) <= 2 * (ATTEMPTS + 1) + 1, "each lease goes back, too"


def test_set_after_a_bump_is_read_by_nobody(guarded: Guarded) -> None:
    """A fill, a release and a theft belong to the generation of their token, whatever the record says by then.

    Guard: `on_the_wire`, which names keys after the token and not after the record read last.
    """
    node = guarded.node
    old = guarded.voucher.vouch(marks=[MARK]).generation
    leases = [one(node, key) for key in (b"set", b"released", b"stolen")]
    assert [(lease.key, lease.token.generation) for lease in leases] == [
        (key, old) for key in (b"set", b"released", b"stolen")
    ]
    guarded.voucher.bump()
    assert verdict(reader, node, b"something") is Lease  # the node knows the new generation now
    assert node.lease_set(leases[0], FLAGS, b"old", 600) == Stored()
    node.release(leases[1])
    assert isinstance(node.steal(b"stolen", leases[2].token, LONG, MARK), Lease)
    assert isinstance(node.lease_set(leases[2], FLAGS, b"old", 600), Refused)
    assert isinstance(guarded.vouching.lease_get(wire_key(old, b"released"), 1), Lease)
    assert verdict(one, node, b"set") is Lease
    assert verdict(one, node, b"stolen") is Wait


def test_batch_of_everything(guarded: Guarded) -> None:
    """In one batch each ask is judged by its own mark; who is not guarded has no part in it."""
    node, voucher = guarded.node, guarded.voucher
    voucher.vouch(marks=[MARK])
    guarded.fill(b"a")
    guarded.fill(b"b")
    bare = b"%b:plain" % guarded.namespace.encode()
    lease = node.lease_get(bare, LONG)
    assert isinstance(lease, Lease)
    node.lease_set(lease, FLAGS, b"plain", 600)
    marks = {b"a": MARK, bare: None, b"x": OTHER, b"b": MARK, b"new": MARK}

    def sorts() -> list[Any]:
        found = node.lease_get_many([Ask(key, LONG, 0, mark) for key, mark in marks.items()])
        for answer in found:
            if isinstance(answer, Lease):
                node.release(answer)
        return [plain(answer) for answer in found]

    assert sorts() == [b"a", b"plain", "rule", b"b", Lease]
    voucher.bump()
    assert sorts() == [Lease, b"plain", "rule", Lease, Lease]
    voucher.vouch(marks=[OTHER])
    assert sorts() == [Lease, b"plain", Lease, Lease, Lease]
    voucher.withdraw()
    assert sorts() == ["record", b"plain", "record", "record", "record"]


def test_large_batch(guarded: Guarded) -> None:
    """A batch of several requests reads the record with each of them, and is right when it changes in between."""
    guarded.voucher.vouch(marks=[MARK])
    keys = [b"%b:%d" % (b"k" * 150, i) for i in range(600)]
    read = guarded.node.batch_reader(LONG, 0, FLAGS, MARK)
    leases: Any = read(keys)
    assert all(isinstance(lease, Lease) for lease in leases)
    outcomes = guarded.node.lease_set_many([Fill(lease, FLAGS, lease.key, 600) for lease in leases])
    assert outcomes == [Stored()] * len(keys)
    assert read(keys) == keys
    guarded.voucher.bump()
    assert {plain(answer) for answer in read(keys)} == {Lease}
    guarded.voucher.withdraw()
    assert {plain(answer) for answer in read(keys)} == {"record"}


def test_stale_values(guarded: Guarded) -> None:
    """A value that was invalidated under its generation is stale for one generation only."""
    guarded.voucher.vouch(marks=[MARK])
    guarded.fill(b"key")
    key = wire_key(guarded.voucher.generation, b"key")
    raw = guarded.vouching.invalidate_under(guarded.voucher.key, [key], 60)
    assert guarded.node.trust is not None
    assert guarded.node.trust.generation(raw) == guarded.voucher.generation
    lease = one(guarded.node, b"key")
    assert (type(lease), lease.value, lease.fresh) == (Lease, b"key", False)
    answer = reader(guarded.node, b"key")
    assert (type(answer), answer.value) == (Stale, b"key")
    guarded.voucher.bump()
    assert verdict(reader, guarded.node) is Lease


@pytest.mark.parametrize("stale_for", [0, 30])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_invalidate_under(guarded: Guarded, stale_for: float, count: int) -> None:
    """The daemon's invalidation returns the record as it stands behind all of its keys, None when there is none."""
    node = guarded.vouching
    keys = [wire_key(5, b"%b:%d" % (guarded.namespace.encode(), i)) for i in range(count)]
    for key in keys[:1] + keys[-1:]:
        lease = node.lease_get(key, LONG)
        assert isinstance(lease, Lease) or count == 1
        if isinstance(lease, Lease):
            node.lease_set(lease, FLAGS, b"value", 600)
    assert node.invalidate_under(guarded.voucher.key, keys, stale_for) is None
    record = guarded.voucher.vouch(marks=[MARK])
    assert node.invalidate_under(guarded.voucher.key, keys, stale_for) == record.to_bytes()
    assert not any(isinstance(node.lease_get(key, LONG), Hit) for key in keys[:1] + keys[-1:])


def test_an_errand(guarded: Guarded) -> None:
    """What `invalidate_under` does can be begun and gone on with; over a connection that has died it is lost.

    Not where a wire's socket does its own waiting.
    """
    node, key = guarded.vouching, wire_key(5, guarded.namespace.encode())
    assert MemcachedNode(node.name).begin_invalidation(None, [key]) is None  # there is no connection yet
    assert isinstance(node.lease_get(key, LONG), Lease)
    record = guarded.voucher.vouch(marks=[MARK])
    assert node.begin_invalidation(None, []) is None
    if node._pool.idle[0].sock.gettimeout() is not None:
        assert node.begin_invalidation(None, [key]) is None
        return
    assert finished(node.begin_invalidation(guarded.voucher.key, [key])).result() == record.to_bytes()
    assert isinstance(node.lease_get(key, LONG), Lease)  # the one of before is gone
    assert finished(node.begin_invalidation(None, [key])).result() is None
    assert isinstance(node.lease_get(key, LONG), Lease)
    open_now = node.connections
    for connection in node._pool.idle:
        connection.sock.shutdown(socket.SHUT_RDWR)
    assert finished(node.begin_invalidation(guarded.voucher.key, [key])).lost
    assert node.connections != open_now
    assert node.invalidate_under(guarded.voucher.key, [key]) == record.to_bytes()


def finished(errand: Errand | None) -> Errand:
    """Return an errand that is over."""
    assert errand is not None
    ready = select.poll()
    while not errand.done():
        ready.register(errand.socket, errand.events)
        assert ready.poll(10_000)
        errand.attend(time.monotonic())
    return errand


def test_node_that_was_restarted_is_not_believed() -> None:
    """An empty server has no record; when there is one again, leases and values from before are gone."""
    with MemcachedServer() as server:
        guarded = Guarded(server, "shop")
        guarded.voucher.vouch(marks=[MARK])
        guarded.fill(b"key")
        lease = one(guarded.node, b"held")
        assert verdict(reader, guarded.node) == b"key"
        server.stop()
        server.start()
        assert verdict(reader, guarded.node) == "record"
        guarded.voucher.node = MemcachedNode(server.address)
        guarded.voucher.write()
        assert verdict(reader, guarded.node) is Lease
        assert isinstance(guarded.node.lease_set(lease, FLAGS, b"old", 600), Refused)
        server.stop()
        with pytest.raises(NodeError) as refused:
            reader(guarded.node, b"key")
        assert not isinstance(refused.value, GuardError)


def test_after_a_fork(guarded: Guarded) -> None:
    """A forked child asks over connections of its own, under what the parent knew, and judges by what it reads."""
    guarded.voucher.vouch(marks=[MARK])
    guarded.fill(b"key")
    assert verdict(reader, guarded.node) == b"key"
    assert in_a_child(lambda: repr(verdict(reader, guarded.node))) == repr(b"key")
    guarded.voucher.bump()
    assert in_a_child(lambda: verdict(reader, guarded.node).__name__) == "Lease"
    assert verdict(reader, guarded.node) in (Lease, Wait)


def test_threads_share_what_is_known(guarded: Guarded) -> None:
    """Many threads over few connections: each answer is judged by the record that came with it."""
    guarded.voucher.vouch(marks=[MARK])
    guarded.fill(b"key", b"0")
    node = guarded.opened(pool=2)
    read = node.reader(LONG, 0, FLAGS, MARK)
    wrong: list[Any] = []
    rounds, stop = [0], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            oldest = rounds[0]
            with contextlib.suppress(GuardError):
                found = read(b"key")
                if isinstance(found, bytes) and int(found) < oldest:
                    wrong.append((found, oldest))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 40):
            generation = guarded.voucher.bump()
            rounds[0] = number
            lease = guarded.vouching.lease_get(wire_key(generation, b"key"), 1)
            if isinstance(lease, Lease):
                guarded.vouching.lease_set(lease, FLAGS, b"%d" % number, 600)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    node.close()
    assert wrong == []
