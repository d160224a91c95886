"""Stores under test: in memory, on Redis and on memcached; what is compiled also by its pure twin."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import uvloop

from leasecache import _accel
from leasecache.config import open_async_store, open_store
from leasecache.lab import MemcachedServer, RedisCluster, RedisServer, redis_cluster
from leasecache.stores import greeting
from leasecache.stores.alocal import AsyncLocalStore
from leasecache.stores.amemcached import AsyncMemcachedNode
from leasecache.stores.arouted import AsyncRoutedStore
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.memory import MemoryStore
from leasecache.stores.routed import RoutedStore
from tests.driven import DrivenStore
from tests.fix_guard import Guarded, Voucher
from tests.twins import USABLE

T = TypeVar("T")
SWITCHED = ("MemoryReader", "Mux", "MuxReader", "NodeReader", "RingReader", "Wire", "parse_reply")
LOOPS = {"async": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
SERVERS = {"memcached": "shared_memcached", "memcached_e": "recent_memcached"}  # with its own CAS numbers, with ours


@pytest.fixture(scope="session")
def shared_memcached() -> Iterator[MemcachedServer]:
    """A memcached for tests that keep to keys of their own."""
    with MemcachedServer() as server:
        yield server


@pytest.fixture(scope="session")
def recent_memcached() -> Iterator[MemcachedServer]:
    """One like that, which takes CAS numbers from its clients."""
    with MemcachedServer(recent=True) as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis for tests that keep to keys of their own."""
    with RedisServer() as server:
        yield server


KINDS = [f"{kind}-{twin}" for kind in ("memory", *SERVERS) for twin in ("c", "python")]
ASYNC_KINDS = ["async_memory-c", "uvloop_memcached-c", *(f"async_{kind}" for kind in KINDS if "memory" not in kind)]


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[RedisCluster]:
    """A cluster of two primaries like that."""
    with redis_cluster() as cluster:
        yield cluster


REDIS = {"redis": "shared_redis", "redis_cluster": "shared_redis_cluster"}
ASYNC_REDIS = [f"async_{kind}" for kind in REDIS]


GUARDED = ["guarded_memcached-c", "guarded_memcached-python", "guarded_memcached_e-c", "guarded_redis"]
ASYNC_GUARDED = ["async_guarded_memcached-c", "async_guarded_memcached_e-python", "async_guarded_redis"]


@pytest.fixture(params=[*REDIS, *ASYNC_REDIS, *KINDS, *ASYNC_KINDS, *GUARDED, *ASYNC_GUARDED])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Each store, sync and async; in memory and on memcached of either kind by compiled code and by its pure twin.

    Of guarded ones everything is asked for one function, for which somebody vouches.
    """
    if "guarded" in request.param:
        opened: Any = _guarded(request, monkeypatch)
    elif "redis" in request.param:
        driven, kind = request.param.startswith("async_"), request.param.removeprefix("async_")
        url = request.getfixturevalue(REDIS[kind]).url
        opened = DrivenStore(open_async_store(url), asyncio.new_event_loop()) if driven else open_store(url)
    else:
        kind, _, implementation = request.param.partition("-")
        use_twin(implementation, monkeypatch)
        loop, _, rest = kind.partition("_")
        driven = loop in LOOPS
        opened = _opened(rest if driven else kind, driven, request, monkeypatch)
        if driven:
            opened = DrivenStore(opened, LOOPS[loop]())
    yield opened
    opened.close()


def _guarded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    kind, _, implementation = request.param.replace("guarded_", "").partition("-")
    use_twin(implementation or "c", monkeypatch)
    driven, kind = kind.startswith("async_"), kind.removeprefix("async_")
    if kind == "memcached":
        monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    base = request.getfixturevalue((SERVERS | REDIS)[kind])
    url = getattr(base, "url", None) or f"memcached://{base.address}"
    url = f"{url}?namespace=t{uuid.uuid4().hex}&guard=daemon"
    with contextlib.closing(open_store(url)) as plain:
        node: Any = plain.nodes[0]
        Voucher(node, namespace=plain.namespace, run=node.run()).vouch(marks=[b"0123456789ab"])
    store = DrivenStore(open_async_store(url), asyncio.new_event_loop()) if driven else open_store(url)
    return Guarded(store, b"0123456789ab")


def use_twin(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have stores use the compiled code ("c") or its pure twin ("python")."""
    twin = USABLE[0] if implementation == "python" else USABLE[-1]
    for name in SWITCHED:
        monkeypatch.setattr(_accel, name, getattr(twin, name))


Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(params=["asyncio-c", "asyncio-python", "uvloop-c"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run[Any]:
    """A function that runs a coroutine to its end on a new event loop, with each twin."""
    kind, _, implementation = request.param.partition("-")
    use_twin(implementation, monkeypatch)
    return uvloop.run if kind == "uvloop" else asyncio.run


def _opened(kind: str, driven: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if kind == "memory":
        return AsyncLocalStore(MemoryStore()) if driven else MemoryStore()
    if kind == "memcached":  # or is taken for it by its version
        monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    address = request.getfixturevalue(SERVERS[kind]).address
    return AsyncRoutedStore([AsyncMemcachedNode(address)]) if driven else RoutedStore([MemcachedNode(address)])


@pytest.fixture
def key() -> bytes:
    """A key that no other test uses."""
    return b"test:" + uuid.uuid4().hex.encode()
