"""Ways to a Redis: databases, sockets, TLS, passwords, Sentinels that want one; and servers that cannot hold leases."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from leasecache import Cache, ConfigError
from leasecache.config import open_store
from leasecache.errors import NodeError
from leasecache.lab import RedisServer, free_port, watched_redis
from leasecache.lab.redis import SERVICE
from leasecache.lease import Hit, Lease, Stored
from tests.fix_fork import in_a_child
from tests.fix_redis import FLAGS, KEY, Open, filled, hello, holds, pretending, url_of, won

PASSWORD = "s3cret@/:?"
QUOTED = "s3cret%40%2F%3A%3F"


def test_database_is_selected(open_redis: Open, redis: RedisServer) -> None:
    """The number behind the address chooses the database."""
    filled(open_redis(f"redis://{redis.address}/3"))
    assert "\r\n:1\r\n" in redis.ask("SELECT 3", "EXISTS race")
    assert not holds(redis, "race")


def test_unix_socket(open_redis: Open) -> None:
    """A node can be the path of a Unix socket; the database is an option then."""
    with RedisServer("--unixsocket", "redis.sock", "--unixsocketperm", "777") as server:
        store = open_redis(f"redis://{server.data}/redis.sock?db=2")
        filled(store)
        assert "\r\n:1\r\n" in server.ask("SELECT 2", "EXISTS race")
        assert store.nodes[0].name == f"{server.data}/redis.sock"


@pytest.fixture(scope="module")
def protected() -> Iterator[RedisServer]:
    """A Redis with a password, a user who may do everything, and one who may not run scripts."""
    with RedisServer(password="lab") as server:
        server.ask(
            f"ACL SETUSER app on >{PASSWORD} ~* +@all -@dangerous",
            "ACL SETUSER reader on >reader ~* +@all -@scripting",
            f"ACL SETUSER default >{PASSWORD}",
        )
        yield server


@pytest.mark.parametrize("user", ["", "app"])
def test_password(open_redis: Open, protected: RedisServer, user: str, key: bytes) -> None:
    """User and password stand before the address, with special characters percent-encoded; leases need no INFO."""
    filled(open_redis(f"redis://{user}:{QUOTED}@{protected.address}/0"), key)


@pytest.mark.parametrize("login", ["", ":s3cret-not@", "app:s3cret-not@"])
def test_wrong_password_is_named_and_not_shown(open_redis: Open, protected: RedisServer, login: str) -> None:
    """Without the right password the first call is a ConfigError that tells what to change, without the password."""
    with pytest.raises(ConfigError, match=r"it does not let us in: .*give user and password in the URL") as caught:
        open_redis(f"redis://{login}{protected.address}/0").lease_get(KEY, 10)
    assert "s3cret" not in str(caught.value)


def test_server_that_refuses_scripts_is_named(open_redis: Open, protected: RedisServer) -> None:
    """A user who may not run scripts gets a ConfigError that says so."""
    with pytest.raises(ConfigError, match=r"it refuses scripts: NOPERM .*leases need SCRIPT LOAD, EVALSHA and EVAL"):
        open_redis(f"redis://reader:reader@{protected.address}/0").lease_get(KEY, 10)


def test_password_that_changes_while_we_are_in_breaks_nothing(open_redis: Open) -> None:
    """Once a server was fit, being kept out is a NodeError, with which loaders go on."""
    with RedisServer() as server:
        store = open_redis(f"redis://:old@{server.address}/0")
        server.ask("CONFIG SET requirepass old")
        filled(store)
        server.ask("AUTH old", "CONFIG SET requirepass new", "CLIENT KILL TYPE normal SKIPME yes")
        with pytest.raises(NodeError, match="it does not let us in"):
            store.lease_get(KEY, 10)


def test_replica_is_refused(open_redis: Open, redis: RedisServer) -> None:
    """A replica may miss an invalidation, so it is not read."""
    with RedisServer("--replicaof", f"127.0.0.1 {redis.port}") as replica:
        store = open_redis(replica.url)
        with pytest.raises(NodeError, match=r"it is a replica, .*redis\+sentinel://"):
            store.lease_get(KEY, 10)


def test_old_server_is_refused(open_redis: Open) -> None:
    """Before 7.0 there are no leases, and the error says what to do."""
    greet = lambda connection: connection.sendall(hello(b"6.2.14"))  # noqa: E731
    with (
        pretending(lambda connection, command: False, greet) as server,
        pytest.raises(ConfigError, match=r"it is version 6\.2\.14; leases need 7\.0 or newer: upgrade it"),
    ):
        open_redis(url_of(server)).lease_get(KEY, 10)


def test_cluster_and_single_server_are_told_apart(open_redis: Open, redis: RedisServer) -> None:
    """A URL of the other kind is a ConfigError that names the right scheme."""
    greet = lambda connection: connection.sendall(hello(mode=b"cluster"))  # noqa: E731
    with (
        pretending(lambda connection, command: False, greet) as server,
        pytest.raises(ConfigError, match=r"part of a cluster: use redis\+cluster://"),
    ):
        open_redis(url_of(server)).lease_get(KEY, 10)
    with pytest.raises(NodeError, match="cluster"):
        open_redis(f"redis+cluster://{redis.address}").lease_get(KEY, 10)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of the tests'."""
    return trustme.CA()


@pytest.fixture
def secured(authority: trustme.CA, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a Redis that talks TLS, and the file of its authority; only `localhost` is in its certificate."""
    port, ca = free_port(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    certificate = authority.issue_cert("localhost")
    with RedisServer() as server:
        for name, text in (("ca", authority.cert_pem), ("key", certificate.private_key_and_cert_chain_pem)):
            (server.data / f"{name}.pem").write_bytes(text.bytes())
            (server.data / f"{name}.pem").chmod(0o644)
        server.ask(
            *(
                f"CONFIG SET tls-{name}-file {server.data}/{file}.pem"
                for name, file in (("key", "key"), ("cert", "key"))
            ),
            f"CONFIG SET tls-ca-cert-file {server.data}/ca.pem tls-auth-clients no tls-port {port}",
        )
        yield port, ca


def test_tls(open_redis: Open, secured: tuple[int, Path]) -> None:
    """`rediss` checks the server's certificate against ca=, and its name."""
    port, ca = secured
    store = open_redis(f"rediss://localhost:{port}/0?ca={ca}")
    filled(store)
    assert store.reader(10, 0, FLAGS)(KEY) == b"value"
    for wrong in (f"rediss://localhost:{port}/0", f"rediss://127.0.0.1:{port}/0?ca={ca}"):
        with pytest.raises(NodeError, match=r"(?i)certificate"):
            open_redis(wrong).lease_get(KEY, 10)


def test_sentinel_that_wants_the_password_gets_it(open_redis: Open) -> None:
    """A Sentinel is asked without a password first, and with that of the service when it wants one."""
    with watched_redis() as redis:
        store = open_redis(f"redis+sentinel://:shared@{redis.sentinel.address}/{SERVICE}")
        redis.sentinel.ask("ACL SETUSER default on >shared -@all +@all", "CONFIG SET requirepass shared")
        redis.primary.ask("CONFIG SET requirepass shared")
        assert isinstance(won(store), Lease)


def test_sentinels_that_know_nothing(open_redis: Open) -> None:
    """An unknown service, and no Sentinel at all, is a NodeError that tells what each Sentinel said."""
    with watched_redis() as redis:
        nobody = f"127.0.0.1:{free_port()}"
        store = open_redis(f"redis+sentinel://{nobody},{redis.sentinel.address}/unknown")
        with pytest.raises(NodeError, match=f"{nobody} fails .*{redis.sentinel.address} does not know it"):
            store.lease_get(KEY, 10)


def test_missing_package_is_named() -> None:
    """Without redis-py a redis:// URL is a ConfigError with the command that installs it."""
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from leasecache import Cache, ConfigError\n"
        "try: Cache.from_url('redis://localhost')\n"
        "except ConfigError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "pip install 'leasecache[redis]'" in told


def test_child_has_connections_of_its_own(redis: RedisServer) -> None:
    """After a fork neither process reads the other's replies, and the parent's lease still stores."""
    store = open_store(redis.url)
    filled(store, b"value", b"of the parent")
    lease = won(store)
    assert in_a_child(lambda: store.lease_get(b"value", 10).value.decode()) == "of the parent"
    assert in_a_child(lambda: type(store.lease_set(lease, FLAGS, b"child", 60)).__name__) == "Refused"
    assert store.lease_set(lease, FLAGS, b"value", 60) == Stored()
    store.close()


GREENLETS = """
import gevent, json, sys, time
from gevent import monkey
if sys.argv[2] == "patched-first":
    monkey.patch_all()
from leasecache import Cache
loads = []
cache = Cache.from_url(sys.argv[1])
@cache.cached("item:{item_id}", ttl=60, lease_for=60, wait_for=60)
def get_item(item_id: int) -> int:
    loads.append(item_id)
    time.sleep(0.05)
    return item_id
if sys.argv[2] != "patched-first":
    monkey.patch_all()
calls = [gevent.spawn(get_item, 1) for _ in range(100)]
gevent.joinall(calls, timeout=60)
print(json.dumps([sorted({call.value for call in calls}), len(loads)]))
"""


@pytest.mark.parametrize("order", ["patched-first", "declared-first"])
def test_herd_of_greenlets_loads_once(redis: RedisServer, order: str) -> None:
    """Under gevent a hundred greenlets on a cold key run one loader over eight connections."""
    program = [sys.executable, "-c", GREENLETS, f"{redis.url}?pool=8&timeout=60&connect_timeout=60", order]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1], 1]


def test_decorated_function(redis: RedisServer) -> None:
    """The whole way: load, hit, many, invalidate, peek."""
    with Cache.from_url(f"{redis.url}?namespace=shop") as cache:

        @cache.cached("item:{item_id}", ttl=60, stale_for=30)
        def get_item(item_id: int) -> int:
            return item_id

        assert [get_item.lookup(1).state for _ in range(2)] == ["loaded", "fresh"]
        assert get_item.get_many([1, 2, 3]) == {1: 1, 2: 2, 3: 3}
        get_item.invalidate(1)
        assert get_item.lookup(1).state == "stale"
        assert get_item.peek(2) is not None
        assert holds(redis, "shop:item:2")
        assert isinstance(cache.lease_get(b"shop:item:3"), Hit)
