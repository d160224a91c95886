"""Redis that is full, read-only, forgetful, silent, dead, or not Redis; and keys that hold somebody else's values."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from leasecache import Cache
from leasecache.errors import NodeError, NodeTimeout, ProtocolError
from leasecache.lab import RedisServer, TcpProxy, wait_until
from leasecache.lease import Ask, Hit, Lease, Refused, Stored, Wait
from tests.fix_redis import FLAGS, KEY, Open, answered, bulk, filled, hello, holds, pretending, url_of, won

AHEAD = 2**31 - 1

GARBAGE = {
    "binary": b"\x00\xff\xfe\r\n",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "another command's reply": b"+PONG\r\n",
    "a number": b":7\r\n",
    "a value that no script returns": bulk(b"value"),
    "a list that no script returns": b"*3\r\n:1\r\n:2\r\n:3\r\n",
    "a hit without a value": b"*3\r\n$3\r\nHIT\r\n:5\r\n$-1\r\n",
    "a hit without its header": b"*3\r\n$3\r\nHIT\r\n:5\r\n" + bulk(b"value"),
    "no size": b"$\r\n",
    "a size that is none": b"$x\r\n",
    "negative size": b"$-2\r\n",
    "a list of no size": b"*x\r\n",
    "value cut off": b"$10\r\nabc",
    "lists without end": b"*1\r\n" * 5000,
    "two replies": bulk(b"a") + bulk(b"b"),
    "an error": b"-ERR out of order\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize(
    "command", ["SET race alien", 'SET race "F\\xff and too short"', "RPUSH race alien", "SADD {race}:l x"]
)
def test_foreign_value_is_neither_served_nor_overwritten(open_redis: Open, redis: RedisServer, command: str) -> None:
    """What somebody else has put where a value or its lease would be gives a lease that cannot store."""
    redis.ask(command)
    store = open_redis(redis.url)
    for answer in (store.lease_get(KEY, 10), store.reader(10, 0, FLAGS)(KEY), *store.batch_reader(10, 0, FLAGS)([KEY])):
        assert answer == Lease(KEY, None)
        assert isinstance(store.lease_set(answer, FLAGS, b"value", 60), Refused)
    assert store.look(KEY) is None
    assert holds(redis, "race") or holds(redis, "{race}:l")


def test_value_that_somebody_wrote_during_a_load_stays(open_redis: Open, redis: RedisServer) -> None:
    """A lease does not overwrite what somebody else has put there meanwhile, nor does giving it back remove it."""
    store = open_redis(redis.url)
    lease = won(store)
    redis.ask("SET race alien")
    assert isinstance(store.lease_set(lease, FLAGS, b"value", 60), Refused)
    store.release(lease)
    assert "alien" in redis.ask("GET race")
    store.invalidate([KEY], 10)
    assert not holds(redis, "race")


def test_scripts_that_the_server_has_lost_are_sent_again(open_redis: Open, redis: RedisServer) -> None:
    """SCRIPT FLUSH amid every kind of command, single and in a batch, changes no answer."""
    store = open_redis(redis.url)
    flush = lambda: redis.ask("SCRIPT FLUSH")  # noqa: E731
    lease = won(store)
    flush()
    assert store.lease_set(lease, FLAGS, b"value", 60) == Stored()
    flush()
    store.invalidate([KEY, b"other"], 30)
    flush()
    answers = store.lease_get_many([Ask(key, 60) for key in (KEY, b"other", KEY)])
    assert [type(answer).__name__ for answer in answers] == ["Lease", "Lease", "Stale"]
    flush()
    assert isinstance(store.steal(KEY, answers[2].token, 60), Lease)
    flush()
    store.release(answers[1])
    assert isinstance(store.lease_get(b"other", 60), Lease)


def test_out_of_memory(open_redis: Open, redis: RedisServer) -> None:
    """Without room hits are served, a miss gives a lease that cannot store, fills are refused, invalidations done."""
    store = open_redis(redis.url)
    for key in (b"hit", b"hard", b"soft"):
        filled(store, key)
    lease = won(store)
    redis.ask("CONFIG SET maxmemory 1")
    assert store.reader(10, 0, FLAGS)(b"hit") == b"value"
    assert isinstance(store.lease_get(b"hit", 10, AHEAD), Hit)
    assert store.lease_get(b"miss", 10) == Lease(b"miss", None)
    full = store.lease_set(lease, FLAGS, b"value", 60)
    assert isinstance(full, Refused)
    assert "OOM" in full.reason
    assert not holds(redis, "{race}:l")
    store.invalidate([b"hard"])
    store.invalidate([b"soft"], 30)
    assert not holds(redis, "hard")
    assert not holds(redis, "soft")
    redis.ask("CONFIG SET maxmemory 0")
    filled(store)


def test_writes_that_are_refused_while_reads_are_served(open_redis: Open) -> None:
    """After a snapshot failed (MISCONF) hits are served, and nothing else is taken for done, invalidations least."""
    with RedisServer("--save", "3600 1000000") as server:
        store = open_redis(server.url)
        filled(store, b"hit")
        lease = won(store)
        server.data.chmod(0o500)
        server.ask("BGSAVE")
        wait_until(lambda: "rdb_last_bgsave_status:err" in server.ask("INFO persistence"), 60, "the snapshot to fail")
        assert store.reader(10, 0, FLAGS)(b"hit") == b"value"
        assert isinstance(store.lease_get(b"hit", 10, AHEAD), Hit)
        for refused in (
            lambda: store.lease_get(b"miss", 10),
            lambda: store.lease_set(lease, FLAGS, b"value", 60),
            lambda: store.release(lease),
            lambda: store.invalidate([b"hit"]),
            lambda: store.invalidate([b"hit"], 30),
        ):
            with pytest.raises(NodeError, match="MISCONF"):
                refused()
        server.data.chmod(0o700)
        server.ask("BGSAVE")
        wait_until(lambda: "rdb_last_bgsave_status:ok" in server.ask("INFO persistence"), 60, "the snapshot")
        store.invalidate([b"hit"])
        assert store.lease_set(lease, FLAGS, b"value", 60) == Stored()


def test_dead_server_fails_fast_and_comes_back(open_redis: Open, redis: RedisServer) -> None:
    """Without a server every call is a NodeError at once; when it is back, calls are answered again."""
    store = open_redis(redis.url)
    filled(store)
    redis.kill()
    read = store.reader(10, 0, FLAGS)
    for call in (lambda: read(KEY), lambda: store.lease_get(KEY, 10), lambda: store.invalidate([KEY])):
        with pytest.raises(NodeError):
            call()
    redis.start()
    assert isinstance(answered(store), Lease)


def test_restart_between_two_calls_goes_unnoticed(open_redis: Open, redis: RedisServer) -> None:
    """A call whose pooled connection has died meanwhile is answered over a new one."""
    store = open_redis(redis.url)
    filled(store)
    redis.restart()
    assert isinstance(store.reader(10, 0, FLAGS)(KEY), Lease)
    redis.restart()
    assert isinstance(store.lease_get(KEY, 10), Lease)


def test_silent_server_costs_one_time_limit(open_redis: Open, redis: RedisServer) -> None:
    """A stopped server is a NodeTimeout, and later its late answer is nobody's: the connection is not used again."""
    patient, store = open_redis(redis.url), open_redis(f"{redis.url}?timeout=1")
    filled(patient, KEY, b"mine")
    filled(patient, b"other", b"another's")
    answered(store)  # it has a connection
    redis.pause()
    read = store.reader(10, 0, FLAGS)
    with pytest.raises(NodeTimeout):
        read(b"other")
    redis.resume()
    answered(store)
    assert read(KEY) == b"mine"
    assert store.lease_get(KEY, 10).value == b"mine"


def test_reply_that_is_lost_is_no_acknowledgement(open_redis: Open, redis: RedisServer) -> None:
    """An invalidation whose acknowledgement does not arrive has failed, though the server has done it."""
    with TcpProxy(redis.port) as proxy:
        store = open_redis(f"redis://{proxy.address}/0?timeout=1")
        filled(open_redis(redis.url))
        answered(store)  # it has a connection
        proxy.drop("replies")
        with pytest.raises(NodeTimeout):
            store.invalidate([KEY])
        wait_until(lambda: not holds(redis, "race"), 60, "the invalidation")


@pytest.fixture(params=GARBAGE.values(), ids=GARBAGE.keys())
def garbage_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server that greets like Redis, answers garbage to everything else and hangs up."""

    def reply(connection: Any, command: list[bytes]) -> bool:
        connection.sendall(request.param)
        return False

    with pretending(reply) as server:
        yield url_of(server)


def test_garbage_gives_the_loaders_value(garbage_url: str) -> None:
    """Whatever a server answers, the caller gets what its loader returns, for one key and for many."""
    with Cache.from_url(garbage_url) as cache:

        @cache.cached("item:{item_id}", ttl=60)
        def get_item(item_id: int) -> bytes:
            return b"loaded %d" % item_id

        assert get_item(1) == b"loaded 1"
        assert get_item.get_many([1, 2]) == {1: b"loaded 1", 2: b"loaded 2"}
        assert get_item.peek(1) is None


def test_garbage_is_no_acknowledgement(open_redis: Open, garbage_url: str) -> None:
    """An invalidation that is not answered as the protocol says has not happened, hard or soft, and says so."""
    store = open_redis(garbage_url)
    with pytest.raises(NodeError):
        store.invalidate([KEY])
    with pytest.raises(NodeError):
        store.invalidate([KEY], 10)


def test_connection_that_answered_garbage_is_not_used_again(open_redis: Open) -> None:
    """A reply that the command cannot have may be another command's: what follows on that connection is not trusted."""
    with pretending(lambda connection, command: connection.sendall(b"+PONG\r\n")) as server:
        store = open_redis(url_of(server))
        for _ in range(2):
            with pytest.raises(ProtocolError, match="PONG"):
                wait_until(lambda: _asked(store), 60, "the node to be probed again")
        assert sum(command[0] == b"HELLO" for command in server.seen) == 2


def _asked(store: Any) -> None:
    try:
        store.lease_get(KEY, 10)
    except ProtocolError:
        raise
    except NodeError:
        return


def test_reply_that_a_get_cannot_have_ends_the_short_way(open_redis: Open) -> None:
    """A number in reply to GET may be another command's: the connection is not used again."""

    def reply(connection: Any, command: list[bytes]) -> None:
        connection.sendall(b":7\r\n" if command[0] == b"GET" else b"*1\r\n$10\r\nUNSTORABLE\r\n")

    with pretending(reply) as server:
        store = open_redis(url_of(server))
        store.lease_get(KEY, 10)
        with pytest.raises(ProtocolError, match="unexpected reply 7"):
            store.reader(10, 0, FLAGS)(KEY)
        assert store.nodes[0].connections == (0, 0)


def test_second_reply_is_not_taken_for_the_next_calls(open_redis: Open) -> None:
    """A reply that nobody asked for stays nobody's; guard: nothing may be there to read before a command is sent."""

    def reply(connection: Any, command: list[bytes]) -> None:
        connection.sendall(b"*1\r\n$10\r\nUNSTORABLE\r\n" * (2 if command[3] == b"first" else 1))

    with pretending(reply) as server:
        store = open_redis(url_of(server))
        store.lease_get(b"first", 10)
        with pytest.raises(ProtocolError, match="bytes after the last expected reply"):
            store.lease_get(b"second", 10)


@pytest.mark.parametrize("where", ["greeting", "reply", "short way"])
def test_dripping_server_holds_a_call_no_longer_than_its_time(open_redis: Open, where: str) -> None:
    """A byte every 50 ms keeps no call beyond its time limit; guard: one deadline per exchange, not one per read."""

    def drip(connection: Any, *command: object) -> None:
        for _ in range(400):  # 20 s
            connection.sendall(b"1")
            time.sleep(0.05)

    def reply(connection: Any, command: list[bytes]) -> None:
        if command[0] == b"GET":
            connection.sendall(b"$400\r\n")
            drip(connection)
        elif where == "short way":
            connection.sendall(b"*1\r\n$10\r\nUNSTORABLE\r\n")
        else:
            connection.sendall(b"*1\r\n$400\r\n")
            drip(connection)

    def greet(connection: Any) -> None:
        connection.sendall(b"$400\r\n" if where == "greeting" else hello())
        if where == "greeting":
            drip(connection)

    with pretending(reply, greet) as server:
        store = open_redis(url_of(server, "timeout=1&connect_timeout=1"))
        if where == "short way":
            answered(store)
        began = time.monotonic()
        with pytest.raises(NodeTimeout):
            store.reader(10, 0, FLAGS)(KEY)
        assert time.monotonic() - began < 15  # of the 20 s and more that the bytes take


def test_loading_server_is_left_alone_and_asked_again(open_redis: Open) -> None:
    """LOADING is a NodeError, and a connection that says so is not kept."""
    loading = [True]

    def reply(connection: Any, command: list[bytes]) -> None:
        connection.sendall(b"-LOADING Redis is loading the dataset\r\n" if loading else b"*1\r\n$3\r\nWON\r\n")

    with pretending(reply) as server:
        store = open_redis(url_of(server))
        with pytest.raises(NodeError, match="loading"):
            store.lease_get(KEY, 10)
        loading.clear()
        assert isinstance(answered(store), Lease)


def test_primary_that_becomes_a_replica_is_left(open_redis: Open, redis: RedisServer) -> None:
    """READONLY ends the connection, and a replica is refused when it is asked anew."""
    store = open_redis(redis.url)
    filled(store)
    with RedisServer() as other:
        redis.ask(f"REPLICAOF 127.0.0.1 {other.port}")
        with pytest.raises(NodeError, match="replica"):
            store.invalidate([KEY])
        redis.ask("REPLICAOF NO ONE")
        assert isinstance(answered(store), (Lease, Hit, Wait))


HUGE = {
    "string": b"$9999999999\r\n",
    "list": b"*2147483647\r\n",
    "list of huge strings": b"*2\r\n$9999999999\r\n",
    "line": b"+" + b"x" * 2**20,
}


@pytest.mark.parametrize("where", ["reply", "greeting", "login"])
@pytest.mark.parametrize("announced", HUGE.values(), ids=HUGE.keys())
def test_size_that_is_announced_is_not_believed(open_redis: Open, announced: bytes, where: str) -> None:
    """A server that announces gigabytes and goes on sending is left within its first bytes, and not for the time limit.

    Guard: sizes are compared with what the protocol allows before anything is kept.
    """
    sent = [0]

    def flood(connection: Any, *command: object) -> None:
        connection.sendall(announced)
        while where != "login" or sent[0] < 2**22:
            connection.sendall(b"x" * 2**16)
            sent[0] += 2**16

    greet = flood if where == "greeting" else None
    with pretending(flood, greet) as server:
        if where == "login":
            server.login = flood
        store = open_redis(url_of(server, "timeout=60&connect_timeout=60"))
        began = time.monotonic()
        with pytest.raises(NodeError):
            store.reader(10, 0, FLAGS)(KEY)
        assert time.monotonic() - began < 30
        assert sent[0] < 2**25
