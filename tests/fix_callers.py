"""Caches for tests of what callers see, of the test's own: in memory and on memcached, for threads and for tasks."""

from collections.abc import Iterator
from typing import Any

import pytest

from leasecache import Cache
from leasecache.holders import Holders
from tests.facade import BlockingCache


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer leases, where they are granted, are ten times as long: the busiest machine stores within them."""
    grant = Holders.grant
    monkeypatch.setattr(Holders, "grant", lambda self, key, lease_for: 10 * grant(self, key, lease_for))


@pytest.fixture(params=["memory", "memcached"])
def sync_cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """A synchronous cache in memory and one on memcached, for what only threads can do."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("memcached").url
    with Cache.from_url(url) as opened:
        yield opened


@pytest.fixture(params=["memory", "memcached", "async-memory", "async-memcached"])
def cache(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cache in memory and one on memcached, of the test's own, synchronous and asyncio."""
    url = request.getfixturevalue("memcached").url if request.param.endswith("memcached") else "memory://"
    with (BlockingCache if request.param.startswith("async") else Cache.from_url)(url) as opened:
        yield opened
