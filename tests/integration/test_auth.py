"""memcached that asks for user and password (-Y)."""

from collections.abc import Iterator

import pytest

from leasecache import Cache, ConfigError, Hit, Lease, Stored
from leasecache.lab import MemcachedServer

SECRET = "s3cret"


@pytest.fixture(params=[False, True], ids=["system", "recent"])
def server(request: pytest.FixtureRequest) -> Iterator[MemcachedServer]:
    """A memcached with one user."""
    with MemcachedServer(recent=request.param, credentials=("app", SECRET)) as running:
        yield running


def test_user_and_password_of_the_url(server: MemcachedServer) -> None:
    """With the right ones every connection is let in: those of the pool and those for administration."""
    with Cache.from_url(server.url) as cache:
        lease = cache.lease_get(b"item")
        assert isinstance(lease, Lease)
        assert cache.lease_set(lease, b"value", 60) == Stored()
        store = cache.driver().store
        assert isinstance(store.look(b"item"), Hit)
        assert store.stats()[server.address]["curr_items"] == 1
        assert [node.name for node in store.nodes] == [server.address]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("memcached://app:wr0ng@{address}", "refuses this user and password"),
        ("memcached://nobody:wr0ng@{address}", "refuses this user and password"),
        ("memcached://{address}", "wants a user and a password"),
    ],
)
def test_wrong_or_missing_password(url: str, fault: str, server: MemcachedServer) -> None:
    """They are a configuration error that names node and fix, and neither user nor password."""
    with Cache.from_url(url.format(address=server.address)) as cache:
        with pytest.raises(ConfigError, match=rf"{server.address}: it {fault}; correct .*user:password@") as caught:
            cache.lease_get(b"item")
        assert "wr0ng" not in str(caught.value)


def test_server_that_asks_for_no_password_does_not_keep_it(memcached: MemcachedServer) -> None:
    """What a server without -Y takes for a set of an item is gone at once; guard: its ttl of −1."""
    with Cache.from_url(memcached.url.replace("//", f"//app:{SECRET}@")) as cache:
        assert isinstance(cache.lease_get(b"item"), Lease)
    assert SECRET not in memcached.ask("get auth")
    assert memcached.ask("get auth").startswith("END")
