"""Sides of hits by many asyncio tasks at once on one memcached, each task on a key of its own."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from leasecache import AsyncCache, row
from leasecache.guard import function_marks, guard_key, ring_mark
from loadtests.bench.guarded import record
from loadtests.bench.hits import TTL
from loadtests.bench.raw import RawSocket
from loadtests.bench.run import Run, event_loop, together
from loadtests.bench.site import Site, host_port

IDS = range(12300, 12500)  # one task each
LoopOf = Callable[[Site], asyncio.AbstractEventLoop]
POOL = 16  # connections, for clients that have one request on a connection at a time


def ours(site: Site, loop_of: LoopOf = event_loop) -> Run:
    """Await a decorated coroutine function whose values are there."""
    cache = AsyncCache.from_url(f"memcached://{site.address('memcached')}?namespace=shop", guard="none")
    load, loop = site.loader(times=len(IDS)), loop_of(site)

    async def get_media(media_id: int) -> bytes:
        value: bytes = load()
        return value

    site.at_end(lambda: loop.run_until_complete(cache.aclose()))
    cached = cache.cached("media:{media_id}", ttl=TTL)(get_media)
    return together(loop, [partial(cached, media_id) for media_id in IDS])


def guarded(site: Site, loop_of: LoopOf = event_loop) -> Run:
    """Do the same under a guard: those that leave together share a reading of the guard record."""
    cache = AsyncCache.from_url(f"memcached://{site.address('memcached')}?namespace=together", guard="daemon")
    load, loop = site.loader(times=len(IDS)), loop_of(site)

    async def get_media(media_id: int) -> bytes:
        value: bytes = load()
        return value

    site.at_end(lambda: loop.run_until_complete(cache.aclose()))
    cached = cache.cached("media:{media_id}", ttl=TTL, depends_on=row("media", media_id="id"))(get_media)
    rings = frozenset([ring_mark([site.address("memcached")])])
    RawSocket(site).store(guard_key("together"), record(rings, function_marks(cache.rules.rules)))
    return together(loop, [partial(cached, media_id) for media_id in IDS])


def emcache(site: Site, autobatching: bool = False, loop_of: LoopOf = event_loop) -> Run:
    """Await emcache's get; with autobatching it asks for the keys of many tasks in one command."""
    from emcache import MemcachedHostAddress, create_client

    loop, address = loop_of(site), MemcachedHostAddress(*host_port(site.address("memcached")))
    client = loop.run_until_complete(create_client([address], max_connections=POOL, autobatching=autobatching))
    site.at_end(lambda: loop.run_until_complete(client.close()))
    keys = [b"emcache:%d" % media_id for media_id in IDS]
    for key in keys:
        loop.run_until_complete(client.set(key, site.value, exptime=TTL))
    return together(loop, [partial(client.get, key) for key in keys])


def memcachio(site: Site, loop_of: LoopOf = event_loop) -> Run:
    """Await memcachio's get, which has several requests on a connection at a time."""
    from memcachio import Client

    client, loop = Client(host_port(site.address("memcached")), decode_responses=False), loop_of(site)
    site.at_end(client.connection_pool.close)
    keys = [f"memcachio:{media_id}" for media_id in IDS]
    for key in keys:
        loop.run_until_complete(client.set(key, site.value, expiry=TTL))
    return together(loop, [partial(client.get, key) for key in keys])


def aiomcache(site: Site, loop_of: LoopOf = event_loop) -> Run:
    """Await aiomcache's get."""
    from aiomcache import Client

    client, loop = Client(*host_port(site.address("memcached")), pool_size=POOL), loop_of(site)
    site.at_end(lambda: loop.run_until_complete(client.close()))
    keys = [b"aiomcache:%d" % media_id for media_id in IDS]
    for key in keys:
        loop.run_until_complete(client.set(key, site.value, exptime=TTL))
    return together(loop, [partial(client.get, key) for key in keys])


def uvloop(site: Site) -> asyncio.AbstractEventLoop:
    """Return an event loop of uvloop that is closed with the site."""
    from uvloop import new_event_loop

    loop: asyncio.AbstractEventLoop = new_event_loop()
    site.at_end(loop.close)
    return loop


def has_all(site: Site, answers: list[Any]) -> bool:
    """Tell whether each task has got the value, bare or in what its client wraps it in."""
    return [_value(answer) for answer in answers] == [site.value] * len(IDS)


def _value(answer: Any) -> Any:
    if isinstance(answer, Mapping):
        [answer] = answer.values()
    return getattr(answer, "value", answer)
