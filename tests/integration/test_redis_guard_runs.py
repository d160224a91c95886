"""Guard records that a Redis has brought back, lost or refuses: after restarts, failovers, flushes and evictions."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from leasecache import Cache, ConfigError
from leasecache.config import open_async_store, open_store
from leasecache.errors import GuardError, NodeError
from leasecache.guard import guard_key
from leasecache.lab import RedisServer, wait_until, watched_redis
from leasecache.lab.redis import PROMPT
from leasecache.lease import Lease, Stored
from tests.fix_guard import Voucher
from tests.fix_redis import FLAGS, KEY, Open, holds, pretending, url_of

MARK = b"0123456789ab"
GUARD = guard_key(None).decode()


def vouching(url: str) -> Voucher:
    """Return who vouches for the server of a URL, in its present run."""
    node: Any = open_store(url).nodes[0]
    return Voucher(node, run=node.run())


def guarded(url: str) -> str:
    """Return the URL of a guarded cache."""
    return f"{url}{'&' if '?' in url else '?'}guard=daemon"


def asked(store: Any, key: bytes = KEY) -> Any:
    """Return the answer to a guarded lease-get, or its GuardError, once the node answers."""

    def ask() -> Any:
        try:
            return store.lease_get(key, 60, 0, MARK)
        except GuardError as error:
            return error
        except NodeError:
            return None

    return wait_until(ask, 60, "the node to answer")


def filled(store: Any, key: bytes = KEY, value: bytes = b"value") -> None:
    """Store a value of a guarded function."""
    answer = asked(store, key)
    assert isinstance(answer, Lease), answer
    assert store.lease_set(answer, FLAGS, value, 600) == Stored()


@pytest.mark.parametrize("file", ["AOF", "RDB"])
def test_record_that_a_restart_brought_back_is_not_believed(open_redis: Open, file: str) -> None:
    """A restart within the record's life brings it back with the values; nothing of that is believed.

    Guard: the record's run is that of the server behind the connection. The restored server has record and value.
    """
    options = ("--appendonly", "yes", "--appendfsync", "always") if file == "AOF" else ("--save", "3600 1000000")
    with RedisServer(*options) as server:
        voucher = vouching(server.url)
        voucher.vouch(marks=[MARK])
        store = open_redis(guarded(server.url))
        filled(store)
        assert store.reader(10, 0, FLAGS, MARK)(KEY) == b"value"
        if file == "RDB":
            assert "+OK" in server.ask("SAVE")
        server.kill()
        server.start()
        assert isinstance(asked(store), GuardError)
        assert holds(server, GUARD)
        assert holds(server, f"{voucher.generation:016x}:{KEY.decode()}")
        fresh = open_redis(guarded(server.url))
        for one in (store, fresh):
            look, invalidate = partial(one.look, KEY, MARK), partial(one.invalidate, [KEY])
            for call in (partial(one.reader(10, 0, FLAGS, MARK), KEY), look, invalidate):
                with pytest.raises(GuardError, match=r"another run|no guard record"):
                    call()
            [answer] = one.batch_reader(10, 0, FLAGS, MARK)([KEY])
            assert isinstance(answer, GuardError)
        voucher.run = voucher.node.run()
        voucher.bump()
        assert isinstance(asked(store), Lease)
        assert isinstance(fresh.reader(10, 0, FLAGS, MARK)(b"other"), Lease)


def test_promoted_replica_is_not_believed_until_it_is_vouched_for(open_redis: Open) -> None:
    """After a failover the replica has record and values, but may lack invalidations; the daemon's word is waited for.

    Guard: the record's run is that of the server behind the connection.
    """
    with watched_redis() as redis:
        voucher = vouching(redis.url)
        voucher.vouch(marks=[MARK])
        store = open_redis(guarded(redis.url))
        filled(store)
        key = f"{voucher.generation:016x}:{KEY.decode()}"
        wait_until(lambda: holds(redis.replica, key) and holds(redis.replica, GUARD), 60, "replication")
        assert store.reader(10, 0, FLAGS, MARK)(KEY) == b"value"
        redis.primary.kill()
        wait_until(lambda: redis.replica.role == "master", 60, "the promotion")
        assert isinstance(asked(store), GuardError)
        with pytest.raises(GuardError):
            store.reader(10, 0, FLAGS, MARK)(KEY)
        assert holds(redis.replica, key)
        with pytest.raises(GuardError, match="another server"):
            voucher.node.invalidate_under(voucher.key, [])
        voucher.run = wait_until(lambda: _run(voucher), 60, "the new primary")
        voucher.bump()
        filled(store)
        assert store.reader(10, 0, FLAGS, MARK)(KEY) == b"value"


def _run(voucher: Voucher) -> str | None:
    try:
        return voucher.node.run()
    except NodeError:
        return None


def test_server_that_was_a_replica_for_a_while_is_another_run(open_redis: Open) -> None:
    """The same process back in office has had another's data meanwhile: the record of its first term is void.

    Guard: a run is also the number of the replication history, not the process alone.
    """
    with RedisServer(*PROMPT) as redis, RedisServer(*PROMPT) as other:
        voucher = vouching(redis.url)
        first = voucher.run
        voucher.vouch(marks=[MARK])
        filled(open_redis(guarded(redis.url)))
        other.ask(f"REPLICAOF 127.0.0.1 {redis.port}")
        wait_until(lambda: holds(other, GUARD), 60, "replication")
        other.ask("REPLICAOF NO ONE")
        redis.ask(f"REPLICAOF 127.0.0.1 {other.port}")
        wait_until(lambda: "master_link_status:up" in redis.ask("INFO replication"), 60, "replication back")
        with pytest.raises(NodeError):
            voucher.node.invalidate_under(voucher.key, [])
        redis.ask("REPLICAOF NO ONE")
        assert holds(redis, GUARD)
        late = open_redis(guarded(redis.url))
        assert isinstance(asked(late), GuardError)
        run = wait_until(lambda: _run(voucher), 60, "the primary")
        assert run.partition(":")[0] == first.partition(":")[0]
        assert run != first


def test_replication_history_that_changes_under_a_live_connection(open_redis: Open) -> None:
    """A primary without replicas begins another history by itself; its record of the new run is believed at once.

    Guard: the run that a record names is asked about again when it is not the one that the connection knows.
    """
    with RedisServer("--enable-debug-command", "yes") as server:
        voucher = vouching(server.url)
        voucher.vouch(marks=[MARK])
        store = open_redis(guarded(server.url))
        filled(store)
        assert "+OK" in server.ask("DEBUG CHANGE-REPL-ID")
        run = voucher.node.run()
        assert run != voucher.run
        assert voucher.node.invalidate_under(voucher.key, []) is None
        connections = store.nodes[0].connections
        voucher.run = run
        voucher.bump()
        filled(store, KEY, b"newer")
        assert store.reader(10, 0, FLAGS, MARK)(KEY) == b"newer"
        assert store.nodes[0].connections == connections


def test_server_is_asked_for_its_run_once(open_redis: Open, redis: RedisServer) -> None:
    """One INFO per connection while the record holds, one more for a run that is not the server's."""
    voucher = vouching(redis.url)
    voucher.vouch(marks=[MARK])
    store = open_redis(guarded(redis.url))
    redis.ask("CONFIG RESETSTAT")
    filled(store)
    read = store.reader(10, 0, FLAGS, MARK)
    assert [read(KEY) for _ in range(10)] == [b"value"] * 10
    assert _infos(redis) == 1
    voucher.run = "0123:4567"
    voucher.write()
    for _ in range(5):
        with pytest.raises(GuardError, match="another run"):
            read(KEY)
    assert _infos(redis) <= 3


def _infos(server: RedisServer) -> int:
    lines = server.ask("INFO commandstats").splitlines()
    found = [line.partition("calls=")[2].partition(",")[0] for line in lines if line.startswith("cmdstat_info:")]
    return int("".join(found) or 0)


@pytest.mark.parametrize("loss", ["FLUSHALL", "eviction"])
def test_record_that_is_lost_while_the_server_runs(open_redis: Open, redis: RedisServer, loss: str) -> None:
    """Flushed or evicted, the record is absent: nothing is believed, nothing won, and nothing is down."""
    voucher = vouching(redis.url)
    voucher.vouch(marks=[MARK])
    store = open_redis(guarded(redis.url))
    filled(store)
    if loss == "FLUSHALL":
        redis.ask("FLUSHALL")
    else:
        redis.ask("CONFIG SET maxmemory 1 maxmemory-policy allkeys-random", "SET x y", "CONFIG SET maxmemory 0")
    assert not holds(redis, GUARD)
    assert isinstance(asked(store), GuardError)
    with pytest.raises(GuardError):
        store.reader(10, 0, FLAGS, MARK)(KEY)
    assert "\r\n:0\r\n" in "\r\n" + redis.ask("DBSIZE")
    assert not store.nodes[0].errors.down
    voucher.write()
    filled(store)


def test_out_of_memory_under_a_guard(open_redis: Open, redis: RedisServer) -> None:
    """A full server that evicts nothing serves what is vouched for, and gives leases that cannot store."""
    voucher = vouching(redis.url)
    voucher.vouch(marks=[MARK])
    store = open_redis(guarded(redis.url))
    filled(store)
    redis.ask("CONFIG SET maxmemory 1")
    assert store.reader(10, 0, FLAGS, MARK)(KEY) == b"value"
    assert asked(store, b"missed") == Lease(b"missed", None)
    assert voucher.node.invalidate_under(voucher.key, [b"x"], 30) is not None


def test_primary_that_becomes_a_replica(open_redis: Open, redis: RedisServer) -> None:
    """READONLY and the answer of a replica are errors of the node, of asks and of the daemon's invalidation alike."""
    voucher = vouching(redis.url)
    voucher.vouch(marks=[MARK])
    store = open_redis(guarded(redis.url))
    filled(store)
    with RedisServer() as other:
        redis.ask(f"REPLICAOF 127.0.0.1 {other.port}")
        for call in (
            lambda: voucher.node.invalidate_under(voucher.key, [b"x"]),
            lambda: voucher.node.run(),
            lambda: store.lease_get(b"missed", 10, 0, MARK),
        ):
            with pytest.raises(NodeError):
                call()
        redis.ask("REPLICAOF NO ONE")
        assert isinstance(asked(store), GuardError)


def test_loading_server(open_redis: Open) -> None:
    """LOADING in reply to the question for the run, or to an ask, is an error of the node."""
    with pretending(lambda connection, command: connection.sendall(b"-LOADING Redis is loading\r\n")) as server:
        store = open_redis(guarded(url_of(server)))
        with pytest.raises(NodeError, match="loading"):
            store.lease_get(KEY, 10, 0, MARK)


@pytest.fixture(scope="module")
def protected() -> Iterator[RedisServer]:
    """A Redis with a user who lacks what is dangerous, and one who may ask for the run all the same."""
    with RedisServer(password="lab") as server:
        server.ask(
            "ACL SETUSER app on >app ~* +@all -@dangerous",
            "ACL SETUSER guarded on >guarded ~* +@all -@dangerous +info",
        )
        yield server


def test_user_who_may_not_ask_for_the_run(open_redis: Open, protected: RedisServer, key: bytes) -> None:
    """Without INFO nothing is believed, and the error says what to allow; unguarded asks need no INFO."""
    voucher = vouching(f"redis://guarded:guarded@{protected.address}")
    voucher.vouch(marks=[MARK])
    store = open_redis(f"redis://app:app@{protected.address}?guard=daemon")
    error = asked(store)
    assert isinstance(error, GuardError)
    assert "+info" in str(error)
    assert isinstance(store.lease_get(key, 10), Lease)
    with pytest.raises(NodeError, match=r"NOPERM .*\+info"):
        open_store(f"redis://app:app@{protected.address}").nodes[0].run()


def test_users_who_may(open_redis: Open, protected: RedisServer) -> None:
    """With +info client and daemon have all they need."""
    url = f"redis://guarded:guarded@{protected.address}/2"
    voucher = vouching(url)
    voucher.vouch(marks=[MARK])
    store = open_redis(guarded(url))
    filled(store)
    assert store.reader(10, 0, FLAGS, MARK)(KEY) == b"value"
    store.invalidate([KEY])
    store.clear()


@pytest.mark.parametrize("opened", [open_store, open_async_store])
def test_cluster_has_no_guard(opened: Any) -> None:
    """The URL is a ConfigError that says why and what to use; so is each guarded call of its node."""
    with pytest.raises(ConfigError, match=r"a slot moves between servers .* redis\+sentinel://"):
        opened("redis+cluster://127.0.0.1:7000?guard=daemon")
    with pytest.raises(ConfigError, match="guard"):
        Cache.from_url("redis+cluster://127.0.0.1:7000", guard="daemon")


def test_cluster_node_has_none_either() -> None:
    """A daemon that is given a cluster hears it from the node, too."""
    node: Any = open_store("redis+cluster://127.0.0.1:7000").nodes[0]
    calls: Sequence[Any] = (
        node.run,
        lambda: node.invalidate_under(b"g", [b"k"]),
        lambda: node.lease_get(KEY, 10, 0, MARK),
        lambda: node.look(KEY, MARK),
        lambda: node.reader(10, 0, FLAGS, MARK),
    )
    for call in calls:
        with pytest.raises(ConfigError, match="a cluster has no guard"):
            call()
