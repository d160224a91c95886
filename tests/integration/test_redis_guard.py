"""Guarded asks on Redis: what a record vouches for is served, and nothing else."""

import asyncio
import contextlib
import itertools
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from leasecache import Cache, row
from leasecache.config import open_async_store, open_store
from leasecache.errors import GuardError, NodeError
from leasecache.guard import Record, wire_key
from leasecache.lab import RedisServer, wait_until
from leasecache.lease import Ask, Fill, Hit, Lease, Refused, Stale, Stored, Wait
from leasecache.stores.redis_leases import Exchange
from leasecache.stores.redis_wire import Command
from leasecache.stores.trust import ATTEMPTS
from tests.fix_guard import Voucher
from tests.fix_redis import FLAGS, KEY, Open, bulk, holds, pretending, url_of

MARK, OTHER = b"0123456789ab", b"ba9876543210"
REMEMBERED = 1000  # keys of one exchange


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def voucher(shared_redis: RedisServer, namespace: str) -> Iterator[Voucher]:
    """Who vouches for the server, in a namespace of the test's own."""
    with contextlib.closing(open_store(f"{shared_redis.url}?namespace={namespace}")) as store:
        node: Any = store.nodes[0]
        yield Voucher(node, namespace=namespace, run=node.run())


@pytest.fixture
def store(open_redis: Open, shared_redis: RedisServer, voucher: Voucher, namespace: str) -> Any:
    """A guarded store on that server, sync and async, which the voucher vouches for."""
    voucher.vouch(marks=[MARK])
    return open_redis(f"{shared_redis.url}?namespace={namespace}&guard=daemon")


def won(store: Any, key: bytes = KEY, mark: bytes = MARK) -> Lease:
    """Return a lease that this call has won."""
    answer = store.lease_get(key, 60, 0, mark)
    assert isinstance(answer, Lease), answer
    return answer


def filled(store: Any, key: bytes = KEY, value: bytes = b"value") -> None:
    """Store a value of a guarded function."""
    assert store.lease_set(won(store, key), FLAGS, value, 60) == Stored()


def test_every_call_serves_what_is_vouched_for(
    store: Any, voucher: Voucher, shared_redis: RedisServer, namespace: str
) -> None:
    """A hit comes by each way there is; the key carries the generation on the node, and is logical everywhere else."""
    key = f"{namespace}:a".encode()
    lease = won(store, key)
    assert lease.key == key
    assert lease.token is not None
    assert lease.token.generation == voucher.generation
    assert store.lease_set(lease, FLAGS, b"value", 60) == Stored()
    assert store.reader(10, 0, FLAGS, MARK)(key) == b"value"
    assert store.batch_reader(10, 0, FLAGS, MARK)([key]) == [b"value"]
    for answer in (store.lease_get(key, 10, 0, MARK), *store.lease_get_many([Ask(key, 10, 0, MARK)])):
        assert isinstance(answer, Hit)
        assert answer.value == b"value"
    assert store.look(key, MARK).value == b"value"
    assert store.look(b"missing", MARK) is None
    assert holds(shared_redis, f"{voucher.generation:016x}:{namespace}:a")
    assert not holds(shared_redis, f"{namespace}:a")


def test_refresh_stale_wait_steal_and_release_under_a_generation(store: Any, voucher: Voucher) -> None:
    """Every answer of the decision table comes under a generation, and its token works there."""
    filled(store)
    early = store.lease_get(KEY, 10, 1e6, MARK)
    assert isinstance(early, Lease)
    assert early.fresh
    assert store.lease_set(early, FLAGS, b"newer", 60) == Stored()
    voucher.node.invalidate([wire_key(voucher.generation, KEY)], 30)
    stale = won(store)
    assert stale.value == b"newer"
    loser = store.lease_get(KEY, 10, 0, MARK)
    assert isinstance(loser, Stale)
    thief = store.steal(KEY, loser.token, 10, MARK)
    assert isinstance(thief, Lease)
    assert isinstance(store.lease_set(stale, FLAGS, b"old", 60), Refused)
    store.release(thief)
    again = won(store)
    assert store.lease_set_many([Fill(again, FLAGS, b"last", 60)]) == [Stored()]
    assert store.reader(10, 0, FLAGS, MARK)(KEY) == b"last"


def stranger(voucher: Voucher) -> None:
    """Put a list where the record would be."""
    voucher.withdraw()
    voucher.node.exchange(Exchange([Command(voucher.key, (b"RPUSH", voucher.key, b"x"), int)]))  # type: ignore[attr-defined]


UNBELIEVABLE: dict[str, tuple[Callable[[Voucher], object], str]] = {
    "absent": (lambda voucher: voucher.withdraw(), "record"),
    "garbage": (lambda voucher: voucher.put(b"\x00 garbage"), "record"),
    "empty": (lambda voucher: voucher.put(b""), "record"),
    "a later version": (lambda voucher: voucher.put(b"2" + voucher.write().to_bytes()[1:]), "record"),
    "marked as stale": (lambda voucher: voucher.node.invalidate([voucher.key], 30), "record"),
    "not a string": (stranger, "record"),
    "another ring": (lambda voucher: voucher.write(rings=frozenset([OTHER])), "ring"),
    "another rule": (lambda voucher: voucher.write(rules=frozenset([OTHER])), "rule"),
    "another run": (lambda voucher: voucher.write(run="0123:4567"), "record"),
}


@pytest.mark.parametrize("case", UNBELIEVABLE)
@pytest.mark.parametrize("acquainted", [True, False], ids=["acquainted", "new"])
def test_nothing_is_served_or_won_without_a_record_that_vouches(
    open_redis: Open, shared_redis: RedisServer, store: Any, voucher: Voucher, case: str, acquainted: bool
) -> None:
    """Whoever knew another record before, and whoever did not, gets GuardError, and the server holds what it held.

    Guards: the record is compared in hits, and by the scripts before they do anything.
    """
    filled(store)
    lease, first = won(store, b"held"), store
    if not acquainted:
        store = open_redis(f"{shared_redis.url}?namespace={store.namespace}&guard=daemon")
    change, missing = UNBELIEVABLE[case]
    change(voucher)
    keys = shared_redis.ask("DBSIZE")
    asks = [Ask(KEY, 10, 0, MARK), Ask(b"missed", 10, 0, MARK)]
    calls: Sequence[Callable[[], object]] = (
        lambda: store.reader(10, 0, FLAGS, MARK)(KEY),
        lambda: store.reader(10, 0, FLAGS, MARK)(b"missed"),
        lambda: store.lease_get(b"missed", 10, 0, MARK),
        lambda: store.look(KEY, MARK),
        lambda: store.steal(b"held", lease.token, 10, MARK),
    )
    for call in calls:
        with pytest.raises(GuardError) as caught:
            call()
        assert caught.value.missing == missing
    for answers in (store.lease_get_many(asks), store.batch_reader(10, 0, FLAGS, MARK)([KEY, b"missed"])):
        assert [type(answer) for answer in answers] == [GuardError, GuardError]
    assert shared_redis.ask("DBSIZE") == keys
    assert not store.nodes[0].errors.down
    voucher.withdraw()
    voucher.write()
    assert store.lease_get(KEY, 10, 0, MARK).value == b"value"
    assert first.lease_set(lease, FLAGS, b"value", 60) == Stored()


def test_record_that_runs_out_is_not_believed(store: Any, voucher: Voucher, shared_redis: RedisServer) -> None:
    """What was believed a moment ago is not any more once the record's time is over."""
    filled(store)
    read = store.reader(10, 0, FLAGS, MARK)
    assert read(KEY) == b"value"
    assert ":1" in shared_redis.ask(f"PEXPIRE {voucher.key.decode()} 20")
    wait_until(lambda: not holds(shared_redis, voucher.key.decode()), 60, "the record to expire")
    with pytest.raises(GuardError):
        read(KEY)


def test_unguarded_asks_of_a_batch_are_answered_all_the_same(store: Any, voucher: Voucher) -> None:
    """A batch of both kinds: without a record the guarded ones fail alone, and a function's rules are its own."""
    plain, guarded, unserved = (
        Ask(uuid.uuid4().hex.encode(), 10),
        Ask(b"guarded", 10, 0, MARK),
        Ask(b"unserved", 10, 0, OTHER),
    )
    answers = store.lease_get_many([guarded, plain, unserved])
    assert [type(answer) for answer in answers] == [Lease, Lease, GuardError]
    assert [answer.token.generation for answer in answers[:2]] == [voucher.generation, 0]
    voucher.withdraw()
    answers = store.lease_get_many([guarded, plain])
    assert [type(answer) for answer in answers] == [GuardError, Wait]


def test_another_generation_is_taken_over(store: Any, voucher: Voucher, shared_redis: RedisServer) -> None:
    """After a bump every call asks under the new generation, and has won nothing under the old one.

    Guard: a script does nothing under another record.
    """
    read, read_many = store.reader(10, 0, FLAGS, MARK), store.batch_reader(10, 0, FLAGS, MARK)
    calls: list[Callable[[bytes], Any]] = [
        read,
        lambda key: store.lease_get(key, 10, 0, MARK),
        lambda key: store.lease_get_many([Ask(key, 10, 0, MARK)])[0],
        lambda key: read_many([key])[0],
        lambda key: store.steal(key, lease.token, 10, MARK),
    ]
    lease = won(store)
    for call in calls:
        filled(store, b"old")
        old = voucher.generation
        key = uuid.uuid4().hex.encode()
        assert store.look(b"old", MARK) is not None
        voucher.bump()
        answer = call(key)
        assert isinstance(answer, Lease)
        assert answer.token is not None
        assert answer.token.generation == voucher.generation
        assert not holds(shared_redis, f"{{{old:016x}:{key.decode()}}}:l")
        voucher.bump()
        assert isinstance(call(b"old"), Lease)
        voucher.bump()
        assert store.look(b"old", MARK) is None


def test_batch_across_exchanges_sees_a_bump_in_between(store: Any, voucher: Voucher) -> None:
    """Each exchange of a large batch is judged by the record that came with it: none is served from before a bump."""
    keys = [b"%d" % i for i in range(REMEMBERED + 10)]
    for fill in _fills(store, keys):
        assert fill == Stored()
    read = store.batch_reader(10, 0, FLAGS, MARK)
    assert read(keys) == [b"value"] * len(keys)
    node = store.nodes[0]
    exchanges = itertools.count()
    before(node, lambda: voucher.bump() if next(exchanges) == 1 else None)
    answers = read(keys)
    assert answers[:REMEMBERED] == [b"value"] * REMEMBERED
    assert {type(answer) for answer in answers[REMEMBERED:]} == {Lease}


def _fills(store: Any, keys: list[bytes]) -> Iterator[Any]:
    leases = store.lease_get_many([Ask(key, 60, 0, MARK) for key in keys])
    yield from store.lease_set_many([Fill(lease, FLAGS, b"value", 60) for lease in leases])


def before(node: Any, step: Callable[[], object]) -> None:
    """Do something before each exchange of a node."""
    original = node.exchange

    def exchange(request: Any) -> Any:
        step()
        return original(request)

    node.exchange = exchange


def test_generations_that_keep_changing_end_a_call(store: Any, voucher: Voucher) -> None:
    """A call that another generation cuts across each time gives up, with GuardError, after a few attempts."""
    filled(store)
    store.lease_get(KEY, 10, 0, MARK)
    calls = itertools.count()
    before(store.nodes[0], lambda: (next(calls), voucher.bump()))
    with pytest.raises(GuardError, match="has changed"):
        store.lease_get(KEY, 10, 0, MARK)
    with pytest.raises(GuardError, match="has changed"):
        store.look(KEY, MARK)
    assert next(calls) <= 4 * ATTEMPTS


def test_lease_of_an_older_generation_stores_where_nobody_reads(store: Any, voucher: Voucher) -> None:
    """A fill that a bump has overtaken is stored under its own generation, and does not appear under the next."""
    lease = won(store)
    voucher.bump()
    assert store.lease_set(lease, FLAGS, b"old", 60) == Stored()
    assert isinstance(won(store), Lease)
    store.release(lease)


def test_invalidation_by_the_application_reaches_both_keys(store: Any, voucher: Voucher) -> None:
    """The value of the generation goes, and what unguarded functions have under the logical key; not without a record.

    A lease from before the call cannot store.
    """
    filled(store)
    lease, plain = won(store, b"held"), store.lease_get(b"held", 60)
    store.invalidate([KEY, b"held"])
    assert isinstance(won(store), Lease)
    for each in (lease, plain):
        assert isinstance(store.lease_set(each, FLAGS, b"old", 60), Refused)
    voucher.withdraw()
    with pytest.raises(GuardError):
        store.invalidate([KEY])


def test_clear_gives_a_new_generation(store: Any, voucher: Voucher, shared_redis: RedisServer) -> None:
    """All values are out of reach at once; the record keeps what else it says and lives no longer; none, no clear()."""
    filled(store)
    store.clear()
    assert isinstance(won(store), Lease)
    raw = voucher.node.invalidate_under(voucher.key, [])
    record = Record.from_bytes(raw or b"")
    assert record is not None
    assert record.generation != voucher.generation
    assert (record.tenure, record.run) == (voucher.tenure, voucher.run)
    left = int(shared_redis.ask(f"PTTL {voucher.key.decode()}").partition(":")[2].split()[0])
    assert 50_000 < left <= 60_000
    voucher.withdraw()
    with pytest.raises(GuardError):
        store.clear()


@pytest.mark.parametrize("stale_for", [0, 30])
def test_invalidation_under_a_record_returns_it(
    store: Any, voucher: Voucher, shared_redis: RedisServer, stale_for: float
) -> None:
    """Thousands of wire keys go, hard or soft, and the record comes back as it stands then; None when it is gone."""
    keys = [b"%d" % i for i in range(2 * REMEMBERED + 1)]
    assert set(_fills(store, keys)) == {Stored()}
    names = [wire_key(voucher.generation, key) for key in keys]
    raw = voucher.node.invalidate_under(voucher.key, names, stale_for)
    assert raw == voucher.write().to_bytes()
    assert {type(answer) for answer in store.lease_get_many([Ask(key, 60, 0, MARK) for key in keys])} == {Lease}
    assert voucher.node.invalidate_under(voucher.key, [], stale_for) == raw
    voucher.write(run="0123:4567")
    assert voucher.node.invalidate_under(voucher.key, names[:1], stale_for) is None
    voucher.withdraw()
    assert voucher.node.invalidate_under(voucher.key, names[:1], stale_for) is None


def test_bumps_at_random(store: Any, voucher: Voucher) -> None:
    """Random calls against an oracle, while records come, go and change: no value of before the last bump is served."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    read, read_many = store.reader(10, 0, FLAGS, MARK), store.batch_reader(10, 0, FLAGS, MARK)
    keys = [b"%d" % i for i in range(4)]
    truth = dict.fromkeys(keys, b"0")
    versions = itertools.count(1)
    held: list[tuple[Lease, bytes]] = []
    vouched, served = True, 0

    def judge(key: bytes, answer: Any) -> int:
        if isinstance(answer, GuardError):
            assert not vouched
            return 0
        assert vouched, f"{answer} without a record"
        if isinstance(answer, Lease) and answer.token is not None and not answer.fresh:
            held.append((answer, truth[key]))
        value = answer if isinstance(answer, bytes) else answer.value if isinstance(answer, Hit) else None
        assert value in (None, truth[key]), f"{key!r}: {value!r} is older than {truth[key]!r}, seed {seed}"
        return value is not None

    def tried(call: Callable[[bytes], Any], key: bytes) -> Any:
        try:
            return call(key)
        except GuardError as error:
            return error

    moves = {"read": 6, "read many": 3, "ask": 2, "store": 8, "change": 1, "change all": 0.5, "vouch": 2}
    for made in range(20_000):
        if made >= 600 and served > 20:
            break
        [move], key = rng.choices([*moves], [*moves.values()]), rng.choice(keys)
        if move == "read":
            served += judge(key, tried(read, key))
        elif move == "read many":
            served += sum(map(judge, keys, read_many(keys)))
        elif move == "ask":
            served += judge(key, tried(lambda key: store.lease_get(key, 10, 0, MARK), key))
        elif move == "store" and held:  # what was there when the lease was won, however late
            lease, value = held.pop(rng.randrange(len(held)))
            store.lease_set(lease, FLAGS, value, 60)
        elif move == "change":  # and its invalidation as the daemon does it
            truth[key] = b"%d" % next(versions)
            voucher.node.invalidate_under(voucher.key, [wire_key(voucher.generation, key)])
        elif move == "change all":  # and nobody could list what was changed
            truth.update((key, b"%d" % next(versions)) for key in keys)
            voucher.withdraw()
            vouched = rng.random() < 0.7
            if vouched:
                voucher.bump()
        elif move == "vouch" and not vouched:
            voucher.bump()
            vouched = True
    assert served > 20


def test_bumps_under_concurrent_readers(shared_redis: RedisServer, voucher: Voucher, namespace: str) -> None:
    """Threads that read and fill while the generation changes never get a value from before a bump they began after.

    Guard: an answer is judged by the record that came with it, not by the one read last.
    """
    voucher.vouch(marks=[MARK])
    database, floor, served, stop, wrong = [0], [0], itertools.count(), threading.Event(), []

    def work() -> None:
        store = open_store(f"{shared_redis.url}?namespace={namespace}&guard=daemon")
        read = store.reader(10, 0, FLAGS, MARK)
        while not stop.is_set():
            least = floor[0]
            answer = read(KEY)
            if isinstance(answer, bytes):
                next(served)
                if int(answer) < least:
                    wrong.append((answer, least))
            elif isinstance(answer, Lease):
                store.lease_set(answer, FLAGS, b"%d" % database[0], 60)
        store.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in range(1, 50):
            database[0] = version
            voucher.bump()
            floor[0] = version
            seen = next(served)
            wait_until(lambda seen=seen: next(served) > seen + 10, 60, "hits")  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


ANSWERS = {
    "no run": bulk(b"role:master\r\nrun_id:\r\nmaster_replid:0\r\n"),
    "a run of other characters": bulk("role:master\r\nrun_id:ä b\r\nmaster_replid:0\r\n".encode()),
    "no text": b":7\r\n",
    "nothing": b"$-1\r\n",
    "another command's reply": b"*1\r\n$3\r\nWON\r\n",
    "a number without end": bulk(b"role:master\r\nrun_id:" + b"9" * 6000 + b"\r\nmaster_replid:0\r\n"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_garbage_for_a_run_gives_the_loaders_value(open_redis: Open, answer: bytes) -> None:
    """What is no run of a server is nobody's: a NodeError for the store, and for the caller what its loader returns."""
    with pretending(lambda connection, command: connection.sendall(answer)) as server:
        with pytest.raises(NodeError):
            open_redis(url_of(server, "guard=daemon")).lease_get(KEY, 10, 0, MARK)
        with Cache.from_url(url_of(server, "guard=daemon")) as cache:

            @cache.cached("item:{item_id}", ttl=60, depends_on=row("items", item_id="id"))
            def get_item(item_id: int) -> int:
                return item_id

            assert get_item(1) == 1
            assert get_item.get_many([1, 2]) == {1: 1, 2: 2}
            assert get_item.peek(1) is None


def test_cancelled_caller_gives_back_what_it_wins_under_a_generation(
    voucher: Voucher, shared_redis: RedisServer, namespace: str
) -> None:
    """A lease that arrives when its caller is gone is free again at once; guard: it is released under its own key."""
    voucher.vouch(marks=[MARK])

    async def run() -> None:
        store = open_async_store(f"{shared_redis.url}?namespace={namespace}&guard=daemon")
        first = await store.lease_get(b"to connect", 60, 0, MARK)
        assert isinstance(first, Lease)
        cancelled = 0
        for _ in range(20):
            call = asyncio.ensure_future(store.lease_get(KEY, 3600, 0, MARK))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            call.cancel()
            try:
                answer = await call
            except asyncio.CancelledError:
                cancelled += 1
            else:
                assert isinstance(answer, Lease)
                await store.release(answer)
        await store.aclose()
        assert cancelled

    asyncio.run(run())
    assert not holds(shared_redis, f"{{{voucher.generation:016x}:{KEY.decode()}}}:l")
