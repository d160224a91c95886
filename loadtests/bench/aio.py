"""Sides of hits by many asyncio tasks at once on one memcached, each task on a key of its own."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from leasecache import AsyncCache
from loadtests.bench.hits import TTL
from loadtests.bench.run import Run, event_loop, together
from loadtests.bench.site import Site, host_port

IDS = range(12300, 12500)  # one task each
POOL = 16  # connections, for clients that have one request on a connection at a time


def ours(site: Site) -> Run:
    """Await a decorated coroutine function whose values are there."""
    cache = AsyncCache.from_url(f"memcached://{site.address('memcached')}?namespace=shop", guard="none")
    load, loop = site.loader(times=len(IDS)), event_loop(site)

    async def get_media(media_id: int) -> bytes:
        value: bytes = load()
        return value

    site.at_end(lambda: loop.run_until_complete(cache.aclose()))
    cached = cache.cached("media:{media_id}", ttl=TTL)(get_media)
    return together(loop, [partial(cached, media_id) for media_id in IDS])


def emcache(site: Site, autobatching: bool = False) -> Run:
    """Await emcache's get; with autobatching it asks for the keys of many tasks in one command."""
    from emcache import MemcachedHostAddress, create_client

    loop, address = event_loop(site), MemcachedHostAddress(*host_port(site.address("memcached")))
    client = loop.run_until_complete(create_client([address], max_connections=POOL, autobatching=autobatching))
    site.at_end(lambda: loop.run_until_complete(client.close()))
    keys = [b"emcache:%d" % media_id for media_id in IDS]
    for key in keys:
        loop.run_until_complete(client.set(key, site.value, exptime=TTL))
    return together(loop, [partial(client.get, key) for key in keys])


def memcachio(site: Site) -> Run:
    """Await memcachio's get, which has several requests on a connection at a time."""
    from memcachio import Client

    client, loop = Client(host_port(site.address("memcached")), decode_responses=False), event_loop(site)
    site.at_end(client.connection_pool.close)
    keys = [f"memcachio:{media_id}" for media_id in IDS]
    for key in keys:
        loop.run_until_complete(client.set(key, site.value, expiry=TTL))
    return together(loop, [partial(client.get, key) for key in keys])


def aiomcache(site: Site) -> Run:
    """Await aiomcache's get."""
    from aiomcache import Client

    client, loop = Client(*host_port(site.address("memcached")), pool_size=POOL), event_loop(site)
    site.at_end(lambda: loop.run_until_complete(client.close()))
    keys = [b"aiomcache:%d" % media_id for media_id in IDS]
    for key in keys:
        loop.run_until_complete(client.set(key, site.value, exptime=TTL))
    return together(loop, [partial(client.get, key) for key in keys])


def has_all(site: Site, answers: list[Any]) -> bool:
    """Tell whether each task has got the value, bare or in what its client wraps it in."""
    return [_value(answer) for answer in answers] == [site.value] * len(IDS)


def _value(answer: Any) -> Any:
    if isinstance(answer, Mapping):
        [answer] = answer.values()
    return getattr(answer, "value", answer)
