"""`leasecache get`, `peek`, `invalidate` and `stats` on a real memcached: what they print, and that leases live on."""

import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from pymemcache.client.base import Client

from leasecache import Cache, Hit, Lease, Stored, row
from leasecache.cli import main
from leasecache.config import open_store
from leasecache.lab import MemcachedServer, RedisCluster, RedisServer, TcpProxy, free_port
from tests.fix_daemon import run_to_exit
from tests.fix_guard import Voucher

Run = Callable[..., tuple[int, bytes, str]]
CLI = ("-m", "leasecache.cli")


@dataclasses.dataclass
class Media:
    """What the application caches."""

    id: int
    title: str


class Trap:
    """What a hostile pickle does when it is loaded, once it has been stored: a value is read back before that."""

    sprung = False

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return spring, ()


def spring() -> None:
    """Notice that a pickle is loaded."""
    Trap.sprung = True


class Application:
    """Functions of every codec, cached in a namespace of their own."""

    def __init__(self, server: MemcachedServer) -> None:
        self.server, self.namespace = server, f"shop-{uuid.uuid4().hex[:8]}"
        self.url = f"{server.url}?namespace={self.namespace}"
        self.cache = Cache.from_url(self.url)

    def key(self, rest: str) -> str:
        """Return a key of this application."""
        return f"{self.namespace}:{rest}"

    def store(self, value: object, annotation: Any = None, **policy: Any) -> str:
        """Cache a value through a decorated function, and return its key."""

        def load(name: int) -> Any:
            return value

        load.__annotations__["return"] = annotation
        load.__qualname__ = f"load_{uuid.uuid4().hex}"
        cached = self.cache.cached(f"{load.__qualname__}:{{name}}", ttl=100, jitter=0, **policy)(load)
        cached(1)
        return cached.key(1).decode()


@pytest.fixture
def shop(shared_memcached: MemcachedServer) -> Iterator[Application]:
    """An application with a cache."""
    made = Application(shared_memcached)
    yield made
    made.cache.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command line in this process; return exit code, output and errors."""

    def call(*arguments: str) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "argv", ["leasecache", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfdbinary.readouterr()
        return int(ended.value.code or 0), out, err.decode()

    return call


@pytest.mark.parametrize(
    ("value", "annotation", "policy", "printed", "codec", "in_json"),
    [
        (
            Media(7, "schön"),
            Media,
            {},
            '{"id": 7, "title": "schön"}\n'.encode(),
            "msgpack",
            {"id": 7, "title": "schön"},
        ),
        ("two\nlines\x1b[0m", str, {}, b"two\nlines\x1b[0m\n", "str", "two\nlines\x1b[0m"),
        (b"\x00\xff\n", bytes, {}, b"\x00\xff\n", "raw", "AP8K"),
        (None, Media | None, {}, b"null\n", "msgpack", None),
        ({"half": "\ud800"}, None, {"codec": "json"}, b'{"half": "\\ud800"}\n', "json", {"half": "\ud800"}),
        ("a" * 999, str, {"compress_over": 10}, b"a" * 999 + b"\n", "str", "a" * 999),
    ],
    ids=["dataclass", "str", "bytes", "None", "json", "compressed"],
)
def test_get(
    shop: Application,
    run: Run,
    value: object,
    annotation: Any,
    policy: dict[str, Any],
    printed: bytes,
    codec: str,
    in_json: object,
) -> None:
    """`get` prints text, JSON or the bytes as they are; --json puts the value beside what is known of it."""
    key = shop.store(value, annotation, **policy)
    assert run("get", key, "--cache", shop.url) == (0, printed, "")
    code, out, err = run("get", key, "--cache", shop.url, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert list(told) == ["key", "codec", "size", "expires_in", "value"]
    assert (told["key"], told["codec"], told["value"]) == (key, codec, in_json)
    assert 90 <= told["expires_in"] <= 100


def test_a_pickle_is_not_loaded(shop: Application, run: Run) -> None:
    """A pickle is named with its size and is not loaded; the exit code says that there is no value."""
    key = shop.store(Trap(), codec="pickle")
    Trap.sprung = False
    code, out, err = run("get", key, "--cache", shop.url)
    assert (code, out, err.count("\n")) == (1, b"", 1)
    assert "(pickle, " in err
    code, out, err = run("get", key, "--cache", shop.url, "--json")
    assert (code, json.loads(out)["codec"], json.loads(out)["value"]) == (1, "pickle", None)
    assert not Trap.sprung


def test_a_foreign_value(shop: Application, run: Run) -> None:
    """What somebody else stored is described as foreign, not guessed at."""
    key = shop.key("foreign")
    with closing(Client(shop.server.address)) as client:
        client.set(key, b"\x80\x04.", expire=100, flags=16)
    code, _, err = run("get", key, "--cache", shop.url)
    assert (code, "(foreign, 3 bytes)" in err) == (1, True)
    assert json.loads(run("peek", key, "--cache", shop.url, "--json")[1])["codec"] == "foreign"


@pytest.mark.parametrize("command", ["get", "peek"])
def test_looking_takes_no_lease(shop: Application, run: Run, command: str) -> None:
    """An absent entry is exit code 1 in one line; a lease on it stays with its holder, and none is handed out."""
    key = shop.key(command)
    code, out, err = run(command, key, "--cache", shop.url)
    assert (code, out, err) == (1, b"", f"leasecache: no value of {key} on {shop.server.address}\n")
    lease = shop.cache.lease_get(key.encode())
    assert isinstance(lease, Lease)
    assert run(command, key, "--cache", shop.url)[0] == 1
    assert isinstance(shop.cache.lease_set(lease, b"x", 100), Stored)
    assert run(command, key, "--cache", shop.url)[0] == 0


def test_peek(shop: Application, run: Run) -> None:
    """`peek` tells codec, size as stored, time left, compression and node, as lines or as JSON."""
    key = shop.store("a" * 999, str, compress_over=10)
    code, out, err = run("peek", key, "--cache", shop.url, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert 90 <= told.pop("expires_in") <= 100
    assert 0 < told.pop("size") < 100
    assert told == {"key": key, "codec": "str", "compressed": True, "none": False, "node": shop.server.address}
    lines = run("peek", key, "--cache", shop.url)[1].decode().splitlines()
    names = ["key", "codec", "size", "expires in", "compressed", "none", "node"]
    assert [line.split("  ")[0] for line in lines] == names
    assert "compressed  yes" in lines


def test_invalidate(shop: Application, run: Run) -> None:
    """`invalidate` drops the value, or leaves it for --stale-for, and voids a lease that is out."""
    key = shop.store("sunset", str)
    done = (0, f"invalidated {key} on {shop.server.address}\n".encode(), "")
    assert run("invalidate", key, "--cache", shop.url, "--stale-for", "20") == done
    assert 10 <= json.loads(run("get", key, "--cache", shop.url, "--json")[1])["expires_in"] <= 20
    assert run("invalidate", key, "--cache", shop.url) == done
    assert run("get", key, "--cache", shop.url)[0] == 1
    lease = shop.cache.lease_get(key.encode())
    assert isinstance(lease, Lease)
    assert run("invalidate", key, "--cache", shop.url) == done
    assert not isinstance(shop.cache.lease_set(lease, b"old", 100), Stored)


@pytest.mark.parametrize("command", ["get", "peek", "invalidate"])
def test_the_namespace_is_part_of_the_key(shop: Application, run: Run, command: str) -> None:
    """A key without the namespace of the URL is refused with its right spelling."""
    code, out, err = run(command, "media:1", "--cache", shop.url)
    assert (code, out, err.count("\n")) == (2, b"", 1)
    assert repr(shop.key("media:1")) in err


@pytest.mark.parametrize("key", ["", "a b", "a\r\nflush_all", "schön", "a" * 221])
def test_what_is_no_key(shop: Application, run: Run, key: str) -> None:
    """What `.key()` never returns is not sent to a server, which may take it for a command."""
    code, out, err = run("get", key, "--cache", shop.server.url)
    assert (code, out, err.count("\n"), "is no key" in err) == (2, b"", 1, True)


@pytest.mark.parametrize("command", [("get", "x"), ("peek", "x"), ("invalidate", "x"), ("stats",)])
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://", "one process"),
        ("null://", "one process"),
        ("gopher://x", "scheme"),
        (f"memcached://127.0.0.1:{free_port()}", "refused"),
        (f"redis://127.0.0.1:{free_port()}", "refused"),
    ],
    ids=["memory", "null", "unknown", "unreachable", "redis"],
)
def test_caches_that_cannot_be_looked_at(run: Run, command: tuple[str, ...], url: str, says: str) -> None:
    """A cache within a process, and a node that is not there, are one line and exit code 2."""
    code, out, err = run(*command, "--cache", url)
    assert (code, out, err.count("\n"), says in err) == (2, b"", 1, True), err


def test_stats(memcached: MemcachedServer, run: Run) -> None:
    """`stats` prints a row for each node."""
    with closing(Client(memcached.address)) as client:
        for key in ("a", "a", "a", "b"):
            client.get(key)
            client.set("a", b"x")
    code, out, err = run("stats", "--cache", memcached.url, "--json")
    assert (code, err) == (0, "")
    [told] = json.loads(out)
    figures = {name: told[name] for name in ("node", "items", "hits", "misses", "hit_ratio", "sets", "evictions")}
    assert figures == {
        "node": memcached.address,
        "items": 1,
        "hits": 2,
        "misses": 2,
        "hit_ratio": 0.5,
        "sets": 4,
        "evictions": 0,
    }
    assert {*told} - {*figures} == {"version", "uptime", "bytes", "limit", "connections", "guard"}
    code, out, _ = run("stats", "--cache", memcached.url)
    assert (code, "50.0%" in out.decode(), memcached.address in out.decode()) == (0, True, True)


def test_stats_of_leases(memcached: MemcachedServer, run: Run) -> None:
    """A load under a lease is a hit and a set to memcached, as the page of the commands says."""
    with Cache.from_url(memcached.url) as cache:
        lease = cache.lease_get(b"k")
        assert isinstance(lease, Lease)
        assert isinstance(cache.lease_set(lease, b"x", 100), Stored)
    [told] = json.loads(run("stats", "--cache", memcached.url, "--json")[1])
    assert (told["hits"], told["misses"], told["sets"]) == (1, 0, 1)


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_stats_of_guards(kind: str, request: pytest.FixtureRequest, run: Run) -> None:
    """`stats` tells of each node's guard record how long it holds, and whether it is about the URL's nodes."""
    server = request.getfixturevalue(f"shared_{kind}")
    url = f"{kind}://{server.address}?namespace=stats"
    with closing(open_store(url)) as store:
        node: Any = store.nodes[0]
        voucher = Voucher(node, namespace="stats", run=node.run())
        record = voucher.vouch(marks=[b"0123456789ab"])
        [told] = json.loads(run("stats", "--cache", url, "--json")[1])
        guard = told["guard"]
        assert 50 < guard.pop("expires_in") <= 60
        expected = {"generation": f"{record.generation:016x}", "serves_these_nodes": True, "functions": 1}
        assert guard == expected
        assert re.search(r"\b(60|59|58) s", run("stats", "--cache", url)[1].decode())
        voucher.write(rings=frozenset([b"0" * 12]))
        assert "of other" in run("stats", "--cache", url)[1].decode()
        voucher.put(b"garbage")
        assert json.loads(run("stats", "--cache", url, "--json")[1])[0]["guard"] is None
        voucher.withdraw()


def test_entries_under_a_guard(shared_memcached: MemcachedServer, run: Run) -> None:
    """`get`, `peek` and `invalidate` find what a guarded function has stored, by its logical key."""
    namespace = f"shop-{uuid.uuid4().hex[:8]}"
    url = f"memcached://{shared_memcached.address}?namespace={namespace}"
    with Cache.from_url(url, guard="daemon") as cache, closing(open_store(url)) as store:

        @cache.cached("media:{media_id}", ttl=60, depends_on=row("media", media_id="id"))
        def get_media(media_id: int) -> str:
            return f"media {media_id}"

        node: Any = store.nodes[0]
        voucher = Voucher(node, namespace=namespace)
        voucher.vouch(cache.rules.rules)
        get_media(1)
        key = get_media.key(1).decode()
        assert run("get", key, "--cache", url)[:2] == (0, b"media 1\n")
        assert json.loads(run("peek", key, "--cache", url, "--json")[1])["key"] == key
        assert run("invalidate", key, "--cache", f"{url}&guard=daemon")[0] == 0
        assert run("get", key, "--cache", url)[0] == 1
        voucher.withdraw()
        code, _, err = run("invalidate", key, "--cache", f"{url}&guard=daemon")
        assert (code, "is the daemon running?" in err, err.count("\n")) == (2, True, 1)


def test_stats_of_redis(redis: RedisServer, run: Run) -> None:
    """`stats` of a Redis has the same figures, those apart that it does not tell: sets, and a limit that is not set."""
    with Cache.from_url(redis.url) as cache:
        lease = cache.lease_get(b"k")
        assert isinstance(lease, Lease)
        assert isinstance(cache.lease_set(lease, b"x", 100), Stored)
        assert isinstance(cache.lease_get(b"k"), Hit)
    code, out, err = run("stats", "--cache", redis.url, "--json")
    [told] = json.loads(out)
    assert (code, err) == (0, "")
    hits, misses, size = told.pop("hits"), told.pop("misses"), told.pop("bytes")
    assert told.pop("hit_ratio") == hits / (hits + misses)
    assert size > 100_000
    assert int(told.pop("version").split(".")[0]) >= 7
    assert 0 <= told.pop("uptime") < 600
    assert told.pop("connections") >= 1
    assert told == {"node": redis.address, "items": 1, "limit": None, "sets": None, "evictions": 0, "guard": None}
    code, out, err = run("stats", "--cache", redis.url)
    assert (code, err, redis.address in out.decode()) == (0, "", True)


def test_stats_of_a_redis_cluster(shared_redis_cluster: RedisCluster, run: Run) -> None:
    """A cluster shows a row for each of its primaries."""
    code, out, err = run("stats", "--cache", shared_redis_cluster.url, "--json")
    addresses = sorted(primary.address for primary in shared_redis_cluster.primaries)
    assert (code, err, [node["node"] for node in json.loads(out)]) == (0, "", addresses)


def test_stats_of_a_node_that_is_down(memcached: MemcachedServer, run: Run) -> None:
    """The nodes that answer are shown before the one that does not is the error."""
    gone = f"127.0.0.1:{free_port()}"
    code, out, err = run("stats", "--cache", f"memcached://{gone},{memcached.address}", "--json")
    assert (code, [node["node"] for node in json.loads(out)]) == (2, [memcached.address])
    assert (err.count("\n"), gone in err) == (1, True)


def test_stats_of_a_node_that_says_nothing(memcached: MemcachedServer, run: Run) -> None:
    """A node that takes the connection and never answers is one line, too."""
    with TcpProxy(memcached.port) as proxy:
        proxy.stall()
        code, out, err = run("stats", "--cache", f"memcached://{proxy.address}?timeout=0.2")
    assert (code, out, err) == (2, b"", f"leasecache: memcached {proxy.address}: no answer in time\n")


def test_stats_again_and_again(shared_memcached: MemcachedServer) -> None:
    """--watch prints a line of JSON per look and goes on when a node is gone; interrupted, it ends with exit code 0."""
    with MemcachedServer() as server:
        names = [shared_memcached.address, server.address]
        url = f"memcached://{','.join(names)}"
        command = [sys.executable, *CLI, "stats", "--cache", url, "--watch", "1", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert watching.stderr is not None
            assert [node["node"] for node in json.loads(watching.stdout.readline())] == names
            server.kill()
            assert server.address in watching.stderr.readline()
            while len(json.loads(watching.stdout.readline())) != 1:
                pass
            watching.send_signal(signal.SIGINT)
            assert watching.wait(60) == 0
            assert "Traceback" not in watching.stderr.read()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9", "soon"])
def test_watch_takes_whole_seconds(run: Run, seconds: str) -> None:
    """What is no number of seconds to sleep is wrong use."""
    code, _, err = run("stats", "--cache", "memcached://127.0.0.1", "--watch", seconds)
    assert (code, "--watch" in err) == (2, True)


def on_terminal(*arguments: str) -> str:
    """Return what a command writes to a terminal."""
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        with os.fdopen(its, "wb") as output:
            subprocess.run([sys.executable, *CLI, *arguments], stdout=output, stderr=output, timeout=60, check=True)
        return screen.read(65536).decode().replace("\r\n", "\n")


def test_a_terminal_is_not_given_orders(shop: Application) -> None:
    """On a terminal, bytes are a repr and control characters of a text are escaped."""
    text, raw, listed = (
        shop.store("two\nlines\x1b[2J\x9b", str),
        shop.store(b"\x1b\xff\n", bytes),
        shop.store(["\x9b2J"], list[str]),
    )
    assert on_terminal("get", text, "--cache", shop.url) == "two\nlines\\x1b[2J\\x9b\n"
    assert on_terminal("get", raw, "--cache", shop.url) == "b'\\x1b\\xff\\n'\n"
    assert on_terminal("get", listed, "--cache", shop.url) == '["\\u009b2J"]\n'


def test_exit_codes(shop: Application) -> None:
    """As a process, too: 0 with a value, 1 without, 2 for wrong use; the URL may come from the environment."""
    key = shop.store("sunset", str)
    assert run_to_exit([*CLI, "get", key], LEASECACHE_CACHE_URL=shop.url) == (0, "sunset\n", "")
    assert run_to_exit([*CLI, "peek", key + "0", "--cache", shop.url])[0] == 1
    assert run_to_exit([*CLI, "invalidate", "media:1", "--cache", shop.url])[0] == 2
    assert run_to_exit([*CLI, "invalidate", key, "--cache", shop.url, "--stale-for", "-1"])[0] == 2


def test_mark_of_a_value_too_large(run: Run, shop: Application) -> None:
    """What leasecache has left in place of a value is told as that, not as somebody else's."""
    key = shop.store(b"x" * 2**21, bytes)
    code, out, err = run("get", key, "--cache", shop.url)
    assert (code, out) == (1, b"")
    assert "(uncacheable, 0 bytes) is not shown: it was too large to be stored" in err
    assert json.loads(run("peek", key, "--cache", shop.url, "--json")[1])["codec"] == "uncacheable"
