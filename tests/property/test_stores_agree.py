"""The stores agree: any sequence of commands is answered alike in memory, on memcached and on Redis.

Memory is the reference. Tokens are compared by what they are equal to: each store draws its own numbers. Time left may
differ by the second that memcached counts in. No lease and no value runs out meanwhile, for there the stores differ:
`stores/base.py` tells how.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from leasecache.config import open_store
from leasecache.lab import MemcachedServer, RedisCluster, RedisServer
from leasecache.lease import Ask, Fill, Hit, Lease, Token, Wait
from leasecache.stores.base import Store

AHEAD = 2**31 - 1
LEASE_FOR = 60.0
PRECISION = 2.5  # s: two roundings to whole seconds, and the time that the steps take

KEYS = st.integers(0, 2)
FLAGS = st.sampled_from([0x10000001, 0x20000002, 2**32 - 1])
BODIES = st.sampled_from([b"", b"value", b"S\xff", b"a\r\n\0b" * 50])
TTLS = st.sampled_from([30.9, 61.7, 600.0])
STALE_FOR = st.sampled_from([0.0, 0.9, 20.0, 45.5, 1000.0])
AHEADS = st.sampled_from([0, AHEAD])


class Held(NamedTuple):
    """What each store has answered to one command."""

    key: int
    answers: Sequence[Any]


class StoresAgree(RuleBasedStateMachine):
    """Sends every command to all stores and compares what they say."""

    stores: Sequence[Store] = ()

    def __init__(self) -> None:
        super().__init__()
        self.keys = [b"agree:%b:%d" % (uuid.uuid4().hex.encode(), i) for i in range(3)]
        self.leases: list[Held] = []  # all that were ever won, and what a hit's token gives
        self.tokens: list[Held] = []  # of every answer that had one
        self.numbers: list[dict[tuple[int, int], int]] = [{} for _ in self.stores]  # key and CAS → which token it is

    @rule(key=KEYS, ahead=AHEADS)
    def lease_get(self, key: int, ahead: int) -> None:
        """One lease-get."""
        self.compare(key, self.each(lambda store: store.lease_get(self.keys[key], LEASE_FOR, ahead)))

    @rule(key=KEYS, ahead=AHEADS, flags=FLAGS)
    def read(self, key: int, ahead: int, flags: int) -> None:
        """One lease-get by the short way, which may give a hit alone or with its particulars."""
        answers = self.each(lambda store: store.reader(LEASE_FOR, ahead, flags)(self.keys[key]))
        self.compare(key, [shortened(answer, flags) for answer in answers])

    @rule(keys=st.lists(KEYS, max_size=5), ahead=AHEADS)
    def lease_get_many(self, keys: list[int], ahead: int) -> None:
        """A batch of lease-gets, in which keys come several times."""
        asks = [Ask(self.keys[key], LEASE_FOR, ahead) for key in keys]
        self.compare_many(keys, self.each(lambda store: store.lease_get_many(asks)))

    @rule(keys=st.lists(KEYS, max_size=5), ahead=AHEADS, flags=FLAGS)
    def read_many(self, keys: list[int], ahead: int, flags: int) -> None:
        """A batch by the short way."""
        named = [self.keys[key] for key in keys]
        batches = self.each(lambda store: store.batch_reader(LEASE_FOR, ahead, flags)(named))
        self.compare_many(keys, [[shortened(answer, flags) for answer in batch] for batch in batches])

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), flags=FLAGS, body=BODIES, ttl=TTLS)
    def lease_set(self, data: st.DataObject, flags: int, body: bytes, ttl: float) -> None:
        """One lease-set, perhaps under a lease that was used or voided."""
        held = self.drawn(data, self.leases)
        self.same(
            [
                type(store.lease_set(lease, flags, body, ttl))
                for store, lease in zip(self.stores, held.answers, strict=True)
            ]
        )

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), flags=FLAGS, bodies=st.lists(BODIES, max_size=4), ttl=TTLS)
    def lease_set_many(self, data: st.DataObject, flags: int, bodies: list[bytes], ttl: float) -> None:
        """A batch of lease-sets."""
        held = [self.drawn(data, self.leases) for _ in bodies]
        outcomes = []
        for i, store in enumerate(self.stores):
            fills = [Fill(each.answers[i], flags, body, ttl) for each, body in zip(held, bodies, strict=True)]
            outcomes.append([type(outcome) for outcome in store.lease_set_many(fills)])
        self.same(outcomes)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Give a lease back, perhaps not for the first time."""
        held = self.drawn(data, self.leases)
        for store, lease in zip(self.stores, held.answers, strict=True):
            store.release(lease)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def steal(self, data: st.DataObject) -> None:
        """Void whatever a token names, if it names anything still."""
        held = self.drawn(data, self.tokens)
        key = self.keys[held.key]
        pairs = zip(self.stores, held.answers, strict=True)
        self.compare(held.key, [store.steal(key, answer.token, LEASE_FOR) for store, answer in pairs])

    @rule(keys=st.lists(KEYS, max_size=4), stale_for=STALE_FOR)
    def invalidate(self, keys: list[int], stale_for: float) -> None:
        """Invalidate, hard and soft."""
        self.each(lambda store: store.invalidate([self.keys[key] for key in keys], stale_for))

    @rule(key=KEYS)
    def look(self, key: int) -> None:
        """Look at a key."""
        seen = self.each(lambda store: store.look(self.keys[key]))
        self.same([hit and (hit.value, hit.flags) for hit in seen])
        self.close([hit and hit.expires_in for hit in seen])

    def each(self, ask: Callable[[Store], Any]) -> list[Any]:
        """Return what every store says."""
        return [ask(store) for store in self.stores]

    def drawn(self, data: st.DataObject, from_: list[Held]) -> Held:
        """Return one of what is held, the latest most often."""
        return from_[-1 - data.draw(st.integers(0, len(from_) - 1))]

    def compare_many(self, keys: list[int], batches: Sequence[Sequence[Any]]) -> None:
        """Compare the answers to a batch."""
        self.same([len(batch) for batch in batches])
        for i, key in enumerate(keys):
            self.compare(key, [batch[i] for batch in batches])

    def compare(self, key: int, answers: Sequence[Any]) -> None:
        """Compare the answers to one lease-get, and keep what can be used later."""
        self.same([described(answer) for answer in answers])
        if isinstance(answers[0], bytes):
            return
        self.close([getattr(answer, "expires_in", None) for answer in answers])
        self.same_token(key, [answer.token for answer in answers])
        self.tokens.append(Held(key, answers))
        if isinstance(answers[0], Lease):
            self.leases.append(Held(key, answers))
        elif isinstance(answers[0], Hit):  # what a flow drops by its token, or replaces
            self.leases.append(Held(key, [Lease(self.keys[key], hit.token) for hit in answers]))
            self.leases.append(Held(key, [Lease(self.keys[key], hit.token, hit.value, True) for hit in answers]))

    def same(self, answers: Sequence[Any]) -> None:
        """Fail unless all stores say the same."""
        assert all(answer == answers[0] for answer in answers), self.told(answers)

    def close(self, times: Sequence[float | None]) -> None:
        """Fail unless the times are the same but for rounding."""
        given = [time for time in times if time is not None]
        assert len(given) in (0, len(times)), self.told(times)
        assert not given or max(given) - min(given) < PRECISION, self.told(times)

    def same_token(self, key: int, tokens: Sequence[Token]) -> None:
        """Fail unless the token is new to all stores, or the same old one to all."""
        next_number = len(self.numbers[0])
        found = [
            numbers.setdefault((key, token.cas), next_number)
            for numbers, token in zip(self.numbers, tokens, strict=True)
        ]
        self.same(found)

    def told(self, answers: Sequence[Any]) -> str:
        """Return what each store said, by name."""
        return "\n".join(f"{store.nodes[0].name}: {answer}" for store, answer in zip(self.stores, answers, strict=True))


def shortened(answer: Any, flags: int) -> Any:
    """Return the value alone of a hit with these client flags."""
    return answer.value if type(answer) is Hit and answer.flags == flags else answer


def described(answer: Any) -> Any:
    """Return what must be equal: type, value, flags and freshness."""
    if isinstance(answer, (bytes, Wait)):
        return answer if isinstance(answer, bytes) else Wait
    return type(answer), answer.value, answer.flags, getattr(answer, "fresh", None)


@pytest.fixture(scope="module")
def stores(
    shared_memcached: MemcachedServer,
    recent_memcached: MemcachedServer,
    shared_redis: RedisServer,
    shared_redis_cluster: RedisCluster,
) -> Iterator[list[Store]]:
    """One of each: memory, memcached that counts CAS numbers and one that takes ours, Redis, a Redis cluster."""
    servers = (shared_memcached, recent_memcached, shared_redis, shared_redis_cluster)
    opened = [open_store(url) for url in ("memory://", *(server.url for server in servers))]
    yield opened
    for store in opened:
        store.close()


def test_stores_agree(stores: list[Store]) -> None:
    """Hypothesis finds no sequence of commands that the stores answer differently."""
    machine = type("Machine", (StoresAgree,), {"stores": stores})
    settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(machine, settings=settings)
