"""A cache of several memcached nodes."""

import getpass
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from leasecache import Cache, ConfigError, Hit, Lease, NodeError, Stored, Wait, config
from leasecache.lab import MemcachedServer, wait_until


def test_keys_live_on_their_owners_and_one_dead_node_costs_only_its_own() -> None:
    """Batches and single calls reach each key's owner; when a node dies the keys of the other stay cached."""
    with MemcachedServer() as first, MemcachedServer() as second:
        url = f"memcached://{first.address},{second.address}"
        loads: Counter[int] = Counter()
        with Cache.from_url(url) as cache:

            @cache.cached("item:{item_id}", ttl=60)
            def get_item(item_id: int) -> int:
                loads[item_id] += 1
                return item_id

            ids = list(range(100))
            assert get_item.get_many(ids) == {n: n for n in ids}
            owners = {n: cache.driver().store.node_for(get_item.key(n)).name for n in ids}
            assert set(owners.values()) == {first.address, second.address}
            second.kill()
            assert [get_item(n) for n in ids] == ids
            assert {n for n in ids if loads[n] > 1} == {n for n in ids if owners[n] == second.address}


def test_invalidation_reaches_the_reachable_nodes_and_reports_the_others() -> None:
    """invalidate() does what it can and raises the error of the node that did not acknowledge."""
    with (
        MemcachedServer() as first,
        MemcachedServer() as second,
        Cache.from_url(f"memcached://{first.address},{second.address}") as cache,
    ):

        @cache.cached("item:{item_id}", ttl=60)
        def get_item(item_id: int) -> int:
            return item_id

        get_item.get_many(range(50))
        keys = [get_item.key(n) for n in range(50)]
        store = cache.driver().store
        second.kill()
        with pytest.raises(NodeError, match=second.address):
            cache.invalidate(*keys)
        alive = [n for n in range(50) if store.node_for(keys[n]).name == first.address]
        assert alive
        assert all(get_item.peek(n) is None for n in alive)


def test_unfit_node_does_not_keep_an_invalidation_from_the_others() -> None:
    """A node that cannot hold leases is a ConfigError, after the keys of the other node have gone."""
    with MemcachedServer() as fit, MemcachedServer("-C") as unfit, Cache.from_url(fit.url) as alone:
        keys = [b"item:%d" % n for n in range(50)]
        for key in keys:
            lease = alone.lease_get(key)
            assert isinstance(lease, Lease)
            alone.lease_set(lease, b"value", 60)
        for nodes in (f"{fit.address},{unfit.address}", f"{unfit.address},{fit.address}"):
            with Cache.from_url(f"memcached://{nodes}") as cache, pytest.raises(ConfigError, match="runs with -C"):
                cache.invalidate(*keys)
            owned = [key for key in keys if cache.driver().store.node_for(key).name == fit.address]
            assert owned
            assert all(isinstance(alone.lease_get(key), Lease | Wait) for key in owned)


def test_unix_socket(tmp_path: Path) -> None:
    """A node can be the path of a Unix socket."""
    path = tmp_path / "memcached.sock"
    command = ["memcached", "-u", getpass.getuser(), "-s", str(path)]
    with subprocess.Popen(command) as server, Cache.from_url(f"memcached://{path}?namespace=shop") as cache:
        try:
            wait_until(path.exists, 60, "the socket")
            lease = wait_until(lambda: _lease(cache), 60, "memcached to answer")
            assert cache.lease_set(lease, b"value", 60) == Stored()
            assert isinstance(cache.lease_get(b"shop:item"), Hit)
        finally:
            server.terminate()


def _lease(cache: Cache) -> Lease | None:
    try:
        answer = cache.lease_get(b"shop:item")
    except NodeError:
        return None
    return answer if isinstance(answer, Lease) else None


def test_urls_of_the_page_about_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each URL that docs/nodes.md shows can be parsed, and its table names every option."""
    page = (Path(__file__).parents[2] / "docs" / "nodes.md").read_text(encoding="utf-8")
    monkeypatch.setattr("os.access", lambda path, mode: True)
    urls = [line for line in page.splitlines() if re.match("memcacheds?://", line)]
    assert all(config.parse_url(url).nodes for url in urls)
    assert len(urls) == 6
    for option in (*config._MEMCACHED, *config._TLS, "namespace"):
        assert f"`{option}`" in page


def test_weights_of_the_url() -> None:
    """A node of weight three holds three quarters of the keys, for calls, for batches and for invalidations."""
    with (
        MemcachedServer() as first,
        MemcachedServer() as second,
        Cache.from_url(f"memcached://{first.address}*3,{second.address}") as cache,
    ):

        @cache.cached("item:{item_id}", ttl=60)
        def get_item(item_id: int) -> int:
            return item_id

        ids = range(2000)
        assert get_item.get_many(ids) == {n: n for n in ids}
        assert [get_item.lookup(n).state for n in range(50)] == ["fresh"] * 50
        items = {name: figures["curr_items"] for name, figures in cache.driver().store.stats().items()}
        assert sum(items.values()) == 2000
        assert 1400 < items[first.address] < 1600
        cache.invalidate(*[get_item.key(n) for n in ids])
        assert get_item.peek(1) is None
