"""Stores under test: in memory and on a real memcached, over each wire."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from leasecache import _accel, _hot, _pure
from leasecache.lab import MemcachedServer, RedisServer
from leasecache.stores import greeting
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.memory import MemoryStore
from leasecache.stores.redis import RedisNode
from leasecache.stores.routed import RoutedStore

WIRES = {"c": (_hot.Wire, _hot.parse_reply), "python": (_pure.Wire, _pure.parse_reply)}
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


@pytest.fixture(params=["memory", "redis", *(f"{server}-{wire}" for server in SERVERS for wire in WIRES)])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Each store; memcached of either kind once over the compiled wire and once over its pure twin."""
    if request.param == "memory":
        yield MemoryStore()
        return
    if request.param == "redis":
        opened = RoutedStore([RedisNode(request.getfixturevalue("shared_redis").address)])
        yield opened
        opened.close()
        return
    kind, _, implementation = request.param.partition("-")
    wire, parse = WIRES[implementation]
    if kind == "memcached":  # or is taken for it by its version
        monkeypatch.setattr(greeting, "EXPLICIT_VERSION", (99,))
    monkeypatch.setattr(_accel, "Wire", wire)
    monkeypatch.setattr(_accel, "parse_reply", parse)
    server: MemcachedServer = request.getfixturevalue(SERVERS[kind])
    opened = RoutedStore([MemcachedNode(server.address)])
    yield opened
    opened.close()


@pytest.fixture
def key() -> bytes:
    """A key that no other test uses."""
    return b"test:" + uuid.uuid4().hex.encode()
