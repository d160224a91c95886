"""Sides of a hit on Redis."""

from functools import partial
from typing import Any

from leasecache import Cache, row
from leasecache.guard import RECORD_FLAGS, function_marks, guard_key
from leasecache.lease import Lease
from loadtests.bench import rivals
from loadtests.bench.guarded import record
from loadtests.bench.hits import MEDIA_ID, TTL, getter, hit_of
from loadtests.bench.run import Run, awaits, calls, event_loop
from loadtests.bench.site import Site, host_port


def floor(site: Site) -> Run:
    """Call redis-py's get, with the time limit that leasecache has by default."""
    import redis

    host, port = host_port(site.address("redis"))
    client = redis.Redis(host, port, socket_timeout=rivals.TIME_LIMIT)
    site.at_end(client.close)
    client.set("raw:media:12345", site.value, ex=TTL)
    return calls(partial(client.get, "raw:media:12345"))


def ours(site: Site) -> Run:
    """Call a decorated function whose value is there."""
    cache = Cache.from_url(f"redis://{site.address('redis')}?namespace=shop", guard="none")
    site.at_end(cache.close)
    return hit_of(cache.cached("media:{media_id}", ttl=TTL)(getter(site)))


def guarded_floor(site: Site) -> Run:
    """Call redis-py's mget with the keys of a guard record and of a value."""
    import redis

    host, port = host_port(site.address("redis"))
    client = redis.Redis(host, port, socket_timeout=rivals.TIME_LIMIT)
    site.at_end(client.close)
    mark = b"0" * 12
    client.set("raw:guard", record(frozenset([mark]), frozenset([mark]), f"{'0' * 40}:{'1' * 40}"), ex=TTL)
    client.set("raw:media:12345", site.value, ex=TTL)
    return calls(partial(client.mget, "raw:guard", "raw:media:12345"))


def guarded(site: Site) -> Run:
    """Call a decorated function of a guarded cache, whose value is there."""
    cache = Cache.from_url(f"redis://{site.address('redis')}?namespace=guarded", guard="daemon")
    site.at_end(cache.close)
    cached = cache.cached("media:{media_id}", ttl=TTL, depends_on=row("media", media_id="id"))(getter(site))
    store: Any = cache.driver().store
    [node] = store.nodes
    key, rings = guard_key("guarded"), frozenset([store.mark])
    body = record(rings, function_marks(cache.rules.rules), node.run())
    node.lease_set(Lease(key, node.lease_get(key, TTL).token), RECORD_FLAGS, body, TTL)
    return hit_of(cached)


def has_value(site: Site, answer: Any) -> bool:
    """Tell whether an answer is the value, alone or behind a record."""
    return bool((answer[-1] if isinstance(answer, list) else answer) == site.value)


def dogpile(site: Site) -> Run:
    """Call a function that dogpile.cache has decorated."""
    host, port = host_port(site.address("redis"))
    return hit_of(rivals.dogpile("redis", host=host, port=port)(getter(site)))


def cashews(site: Site) -> Run:
    """Await a coroutine function that cashews has decorated."""
    return cashews_hit(site, f"redis://{site.address('redis')}/0")


def cashews_hit(site: Site, url: str) -> Run:
    """Decorate by cashews, call once on an event loop, and then again and again."""
    cache, load, loop = rivals.cashews(url), site.loader(), event_loop(site)

    @cache(ttl=TTL, key="cashews:{media_id}")
    async def get_media(media_id: int) -> bytes:
        value: bytes = load()
        return value

    site.at_end(lambda: loop.run_until_complete(cache.close()))
    loop.run_until_complete(get_media(MEDIA_ID))
    return awaits(loop, partial(get_media, MEDIA_ID))
