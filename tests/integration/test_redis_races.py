"""Leases on a real Redis that restarts with what it has saved, or hands over to a replica."""

import itertools
from collections.abc import Callable
from contextlib import closing

from redis.crc import key_slot

from leasecache.config import open_store
from leasecache.errors import NodeError
from leasecache.lab import RedisServer, redis_cluster, wait_until, watched_redis
from leasecache.lab.redis import HOST, ClusterServer
from leasecache.lease import Ask, Hit, Refused, Stored, Wait
from tests.fix_redis import FLAGS, KEY, Open, answered, filled, holds, won


def test_token_that_a_restart_brought_back_is_refused(open_redis: Open) -> None:
    """A saved lease is there again after a restart, its invalidation is not; guard: an older connection has to store.

    The server would take the token: in the end it has that very lease.
    """
    with RedisServer("--save", "3600 1000000") as server:
        store = open_redis(server.url)
        lease = won(store)
        assert "+OK" in server.ask("SAVE")
        store.invalidate([KEY])
        assert not holds(server, "{race}:l")
        server.kill()
        server.start()
        back = answered(store)
        assert isinstance(back, Wait)
        assert back.token is not None
        assert lease.token is not None
        assert back.token.cas == lease.token.cas
        assert isinstance(store.lease_set(lease, FLAGS, b"stale", 60), Refused)
        assert holds(server, "{race}:l")
        assert not holds(server, "race")


def test_failover_by_sentinel_refuses_tokens_from_before(open_redis: Open) -> None:
    """A promoted replica has the lease, but not an invalidation that was not replicated; guard: an older connection."""
    with watched_redis() as redis:
        store = open_redis(redis.url)
        filled(store, b"kept")
        lease = won(store)
        wait_until(lambda: holds(redis.replica, "{race}:l"), 60, "replication")
        redis.primary.kill()
        wait_until(lambda: redis.replica.role == "master", 60, "the promotion")
        back = answered(store)
        assert isinstance(back, Wait)
        assert isinstance(store.lease_set(lease, FLAGS, b"stale", 60), Refused)
        assert isinstance(store.lease_get(b"kept", 10), Hit)
        store.invalidate([KEY])
        filled(store)


def test_failover_in_a_cluster_refuses_tokens_from_before(open_redis: Open) -> None:
    """Tokens of the shard that failed over are refused, those of the other shard still store; guard: as above."""
    with redis_cluster(replicas=True) as cluster:
        store = open_redis(cluster.url)
        mine, other = (_key_of(cluster.primaries[i]) for i in (0, 1))
        kept = _neighbour(mine)
        filled(store, kept)
        lease, bystander = won(store, mine), won(store, other)
        cluster.replicas[0].ask("CLUSTER FAILOVER")  # which waits until the replica has everything
        wait_until(lambda: cluster.primaries[0].role == "slave", 60, "the hand-over")
        back = answered(store, mine)
        assert isinstance(back, Wait)
        assert back.token is not None
        assert lease.token is not None
        assert back.token.cas == lease.token.cas
        assert isinstance(store.lease_set(lease, FLAGS, b"stale", 60), Refused)
        assert store.lease_set(bystander, FLAGS, b"value", 60) == Stored()
        assert store.reader(10, 0, FLAGS)(kept) == b"value"
        store.invalidate([mine])
        filled(store, mine)


def test_cluster_elects_another_primary_when_one_dies(open_redis: Open) -> None:
    """Keys of a dead primary fail alone, and are served again once its replica has taken over, without a word to us."""
    with redis_cluster(3, replicas=True, node_timeout=2) as cluster:
        store = open_redis(cluster.url)
        keys = [_key_of(primary) for primary in cluster.primaries]
        for key in keys:
            filled(store, key)
        has = f"EXISTS {keys[0].decode()}"
        wait_until(lambda: "\r\n:1\r\n" in cluster.replicas[0].ask("READONLY", has), 60, "replication")
        cluster.primaries[0].kill()
        dead, *alive = store.lease_get_many([Ask(key, 10) for key in keys])
        assert isinstance(dead, NodeError)
        assert all(isinstance(answer, Hit) for answer in alive), alive
        assert isinstance(answered(store, keys[0]), Hit)


def test_cluster_that_lacks_slots_has_not_done_it() -> None:
    """CLUSTERDOWN is a NodeError for reads and invalidations alike, until the cluster is whole again."""
    with (
        redis_cluster(node_timeout=1) as cluster,
        closing(open_store(cluster.url)) as store,
    ):
        key = _key_of(cluster.primaries[0])
        filled(store, key)
        cluster.primaries[1].kill()
        wait_until(lambda: "CLUSTERDOWN" in _complaint(lambda: store.lease_get(key, 10)), 60, "the cluster to be down")
        assert "CLUSTERDOWN" in _complaint(lambda: store.invalidate([key]))
        cluster.primaries[1].start()
        assert isinstance(answered(store, key), Hit)


def test_slot_on_its_way_to_another_node(open_redis: Open) -> None:
    """While a slot is moved hits and invalidations follow ASK, key by key; then leases follow MOVED."""
    with redis_cluster(2) as cluster:
        old, new = cluster.primaries
        store = open_redis(cluster.url)
        key = _key_of(old)
        kept = _neighbour(key)
        filled(store, key)
        filled(store, kept)
        slot = key_slot(key)
        new.ask(f"CLUSTER SETSLOT {slot} IMPORTING {old.id}")
        old.ask(f"CLUSTER SETSLOT {slot} MIGRATING {new.id}")
        assert "+OK" in old.ask(f"MIGRATE {HOST} {new.port} {key.decode()} 0 5000")
        assert "+OK" in old.ask(f"MIGRATE {HOST} {new.port} {kept.decode()} 0 5000")
        assert store.batch_reader(10, 0, FLAGS)([key, kept]) == [b"value", b"value"]
        assert store.look(key) is not None
        store.invalidate([key])
        assert store.look(key) is None
        for node in (new, old):
            node.ask(f"CLUSTER SETSLOT {slot} NODE {new.id}")
        assert isinstance(answered(store, kept), Hit)
        filled(store, key, b"newer")
        assert store.reader(10, 0, FLAGS)(key) == b"newer"


def _key_of(owner: ClusterServer) -> bytes:
    """Return a key whose slot this node owns."""
    for i in range(1000):
        if "MOVED" not in owner.ask(f"EXISTS key-{i}"):
            return b"key-%d" % i
    raise AssertionError("no key found")


def _neighbour(key: bytes) -> bytes:
    """Return another key of the same slot."""
    return next(other for i in itertools.count() if key_slot(other := b"neighbour-%d" % i) == key_slot(key))


def _complaint(call: Callable[[], object]) -> str:
    try:
        call()
    except NodeError as error:
        return str(error)
    return ""
