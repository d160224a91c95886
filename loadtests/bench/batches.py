"""Sides of a batch of 100 hits on memcached."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from leasecache.codecs import RAW_FLAGS
from leasecache.lease import Lease
from loadtests.bench import raw, rivals
from loadtests.bench.hits import TTL, getter, shop
from loadtests.bench.raw import RawSocket
from loadtests.bench.run import Run, calls
from loadtests.bench.site import Site

IDS = range(12300, 12400)


def floor(site: Site) -> Run:
    """Send one pipeline of lease-gets that ends with a no-op, receive what comes before its answer."""
    connection = RawSocket(site)
    keys = [b"raw:media:%d" % media_id for media_id in IDS]
    for key in keys:
        connection.store(key, site.value)
    return calls(partial(connection.ask_many, raw.get_many(keys)))


def ours(site: Site) -> Run:
    """Call `get_many` of a decorated function whose values are there."""
    cached = shop(site).cached("media:{media_id}", ttl=TTL)(getter(site, times=len(IDS)))
    cached.get_many(IDS)
    return calls(partial(cached.get_many, IDS))


def store_alone(site: Site) -> Run:
    """Call what `get_many` asks of the store: the values of keys that are rendered already."""
    cache, keys = shop(site), [b"shop:alone:%d" % media_id for media_id in IDS]
    for key in keys:
        lease = cache.lease_get(key)
        assert isinstance(lease, Lease)
        cache.lease_set(lease, site.value, TTL)
    return calls(partial(cache.driver().store.batch_reader(raw.LEASE_FOR, 0, RAW_FLAGS), keys))


def pymemcache_get_many(site: Site) -> Run:
    """Call pymemcache's get_many."""
    client, names = rivals.pymemcache(site), [f"pymem:media:{media_id}" for media_id in IDS]
    client.set_many(dict.fromkeys(names, site.value), expire=TTL)
    return calls(partial(client.get_many, names))


def pylibmc_get_multi(site: Site) -> Run:
    """Call pylibmc's get_multi."""
    client, names = rivals.pylibmc(site), [f"lib:media:{media_id}" for media_id in IDS]
    client.set_multi(dict.fromkeys(names, site.value), time=TTL)
    return calls(partial(client.get_multi, names))


def meta_memcache_multi_get(site: Site) -> Run:
    """Call meta-memcache's multi_get."""
    client, names = rivals.meta_memcache(site), [f"meta:media:{media_id}" for media_id in IDS]
    for name in names:
        client.set(name, site.value, ttl=TTL)
    return calls(partial(client.multi_get, names))


def has_all(site: Site, answer: Any) -> bool:
    """Tell whether an answer has the value so many times: raw, as a list or as a mapping."""
    if isinstance(answer, bytes):
        return answer.count(site.value) == len(IDS)
    values = answer.values() if isinstance(answer, Mapping) else answer
    return list(values) == [site.value] * len(IDS)
