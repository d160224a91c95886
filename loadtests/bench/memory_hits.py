"""Sides of a hit in the process's own memory."""

import functools

from leasecache import Cache
from loadtests.bench import rivals
from loadtests.bench.hits import TTL, getter, hit_of
from loadtests.bench.redis_hits import cashews_hit
from loadtests.bench.run import Run
from loadtests.bench.site import Site


def floor(site: Site) -> Run:
    """Call functools.lru_cache, which knows neither time nor invalidation and gives every caller the same object."""
    return hit_of(functools.lru_cache(getter(site)))


def ours(site: Site) -> Run:
    """Call a decorated function whose value is there."""
    cache = Cache.from_url("memory://", guard="none")
    site.at_end(cache.close)
    return hit_of(cache.cached("media:{media_id}", ttl=TTL)(getter(site)))


def dogpile(site: Site) -> Run:
    """Call a function that dogpile.cache has decorated."""
    return hit_of(rivals.dogpile("memory")(getter(site)))


def cashews(site: Site) -> Run:
    """Await a coroutine function that cashews has decorated."""
    return cashews_hit(site, "mem://")


def same(site: Site, answer: object) -> bool:
    """Tell whether an answer is the value."""
    return answer == site.value
