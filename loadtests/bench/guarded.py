"""Sides of a guarded hit on memcached: the guard record is read in front of the value, in the same write."""

from functools import partial

from leasecache import Cache, row
from leasecache.guard import NO_RUN, Record, function_marks, guard_key, wire_key
from leasecache.stores import meta
from loadtests.bench import raw
from loadtests.bench.hits import KEY, TTL, getter, hit_of
from loadtests.bench.raw import RawSocket
from loadtests.bench.run import Run, calls
from loadtests.bench.site import Site

GENERATION = 0x1E2D3C4B5A697887


def floor(site: Site) -> Run:
    """Send both requests at once, receive both answers."""
    connection, guard, key = RawSocket(site), guard_key("raw"), wire_key(GENERATION, KEY)
    connection.store(guard, record(frozenset([b"0" * 12]), frozenset([b"0" * 12])))
    connection.store(key, site.value)
    return calls(partial(connection.ask, meta.read_record(guard) + raw.get(key)))


def ours(site: Site) -> Run:
    """Call a decorated function of a guarded cache, whose value is there."""
    cache = Cache.from_url(f"memcached://{site.address('memcached')}?namespace=guarded", guard="daemon")
    site.at_end(cache.close)
    cached = cache.cached("media:{media_id}", ttl=TTL, depends_on=row("media", media_id="id"))(getter(site))
    rings = frozenset([cache.driver().store.mark])
    RawSocket(site).store(guard_key("guarded"), record(rings, function_marks(cache.rules.rules)))
    return hit_of(cached)


def record(rings: frozenset[bytes], rules: frozenset[bytes], run: str = NO_RUN) -> bytes:
    """Return a record as a daemon would write it."""
    return Record(generation=GENERATION, tenure=1, run=run, rings=rings, rules=rules).to_bytes()
