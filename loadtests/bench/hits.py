"""Sides of a hit on memcached: the floor, ours and the rivals, as bytes and decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from leasecache import Cache
from loadtests.bench import raw, rivals
from loadtests.bench.raw import RawSocket
from loadtests.bench.run import Run, calls
from loadtests.bench.site import VALUE_SIZE, Site

MEDIA_ID = 12345
TTL = 3600  # s
KEY, STRUCT = b"raw:media:%d" % MEDIA_ID, b"raw:struct:%d" % MEDIA_ID


@dataclass(frozen=True)
class Media:
    """What is decoded; as MessagePack it has the size of every other value."""

    id: int
    owner: int
    title: str
    caption: str


def media(site: Site) -> Media:
    """Return a value that is encoded in so many bytes."""
    bare = len(msgspec.msgpack.encode(Media(MEDIA_ID, site.seed % 100, "sunset", "c" * 100)))
    return Media(MEDIA_ID, site.seed % 100, "sunset", "c" * (100 + VALUE_SIZE - bare))


def shop(site: Site) -> Cache:
    """Return a cache on memcached, with leasecache's own time limit of 1 s."""
    cache = Cache.from_url(f"memcached://{site.address('memcached')}?namespace=shop", guard="none")
    site.at_end(cache.close)
    return cache


def getter(site: Site, times: int = 1) -> Callable[[int], bytes]:
    """Return the function that is cached; it loads so many times and not once more."""
    load = site.loader(times=times)

    def get_media(media_id: int) -> bytes:
        value: bytes = load()
        return value

    return get_media


def hit_of(cached: Callable[[int], Any]) -> Run:
    """Fill a cached function and call it again and again."""
    cached(MEDIA_ID)
    return calls(partial(cached, MEDIA_ID))


def floor(site: Site) -> Run:
    """Send the request, receive the answer."""
    connection = RawSocket(site)
    connection.store(KEY, site.value)
    return calls(partial(connection.ask, raw.get(KEY)))


def floor_decoded(site: Site) -> Run:
    """Send the request, receive the answer, decode what is in it."""
    connection, value = RawSocket(site), msgspec.msgpack.encode(media(site))
    connection.store(STRUCT, value)
    ask, decode = connection.ask, msgspec.msgpack.Decoder(Media).decode
    request, start = raw.get(STRUCT), -len(value) - 2
    return calls(lambda: decode(ask(request)[start:-2]))


def ours(site: Site) -> Run:
    """Call a decorated function whose value is there."""
    return hit_of(shop(site).cached("media:{media_id}", ttl=TTL)(getter(site)))


def ours_decoded(site: Site) -> Run:
    """Call a decorated function whose value is there and is decoded into a dataclass."""
    load = site.loader(media(site))

    def get_media(media_id: int) -> Media:
        found: Media = load()
        return found

    return hit_of(shop(site).cached("struct:{media_id}", ttl=TTL)(get_media))


def pymemcache_get(site: Site, timeout: float | None = None) -> Run:
    """Call pymemcache's get, which does not know leases."""
    client = rivals.pymemcache(site, timeout)
    client.set("pymemcache:12345", site.value, expire=TTL)
    return calls(partial(client.get, "pymemcache:12345"))


def pylibmc_get(site: Site) -> Run:
    """Call pylibmc's get, which does not know leases."""
    client = rivals.pylibmc(site)
    client.set("lib:media:12345", site.value, time=TTL)
    return calls(partial(client.get, "lib:media:12345"))


def meta_memcache_get(site: Site) -> Run:
    """Call meta-memcache's get_or_lease."""
    from meta_memcache.configuration import LeasePolicy

    client = rivals.meta_memcache(site)
    client.set("meta:media:12345", site.value, ttl=TTL)
    return calls(partial(client.get_or_lease, "meta:media:12345", LeasePolicy()))


def dogpile_on_pymemcache(site: Site) -> Run:
    """Call a function that dogpile.cache has decorated."""
    return hit_of(rivals.dogpile_pymemcache(site)(getter(site)))


def dogpile_on_pylibmc(site: Site) -> Run:
    """Call a function that dogpile.cache has decorated."""
    return hit_of(rivals.dogpile_pylibmc(site)(getter(site)))


def has_value(site: Site, answer: Any) -> bool:
    """Tell whether the value is in an answer, raw or not."""
    return site.value in answer


def has_media(site: Site, answer: Any) -> bool:
    """Tell whether an answer is the decoded value."""
    return bool(answer == media(site))
