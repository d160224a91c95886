"""A herd of callers in several processes on one cold key: how often it loads, and how long the others wait."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leasecache import Cache
from loadtests.bench import rivals
from loadtests.bench.crowd import Crowd
from loadtests.bench.member import Herd, HerdError, Scenario, Seen
from loadtests.bench.row import Effort, Outcome, Row, Tick
from loadtests.bench.servers import Servers
from loadtests.bench.site import Site
from loadtests.bench.slices import missing
from loadtests.bench.spread import percentile

LOADS, P50, P99, FAILED = "loads", "wait p50", "wait p99", "failed calls"  # the figures
TTL = 60  # s
LEASE_FOR = 1.0  # s, where a lease runs out
LEAST_ROUNDS = 3

Load = Callable[[str], bytes]
Get = Callable[[str], bytes]


def floor(site: Site, load: Load) -> Get:
    """Load, everybody for himself: what it costs so many threads to wake up after a sleep of that length."""
    return load


def ours(site: Site, load: Load, **policy: Any) -> Get:
    """Call a decorated function."""
    cache = Cache.from_url(f"memcached://{site.address('memcached')}?namespace=ours", guard="none")
    site.at_end(cache.close)

    def get_value(name: str) -> bytes:
        return load(name)

    return cache.cached("{name}", ttl=TTL, **policy)(get_value)


def meta_memcache(site: Site, load: Load) -> Get:
    """Call meta-memcache's get_or_lease with its own policy, load when it gives nothing, set by the token."""
    from meta_memcache.configuration import LeasePolicy

    client, policy = rivals.meta_memcache(site), LeasePolicy()

    def get(name: str) -> bytes:
        found, token = client.get_or_lease_cas(f"meta:{name}", policy)
        if found is None:
            found = load(name)
            client.set(f"meta:{name}", found, ttl=TTL, cas_token=token)
        value: bytes = found
        return value

    return get


def dogpile(site: Site, load: Load) -> Get:
    """Call a function that dogpile.cache has decorated, with its lock in memcached."""
    decorator = rivals.dogpile_pymemcache(site, distributed_lock=True, lock_timeout=30)

    def get_value(media_id: str) -> bytes:
        return load(media_id)

    get: Get = decorator(get_value)
    return get


def no_lease(site: Site, load: Load) -> Get:
    """Get, load on a miss, set, by pymemcache: what most applications do."""
    from pymemcache.client.base import PooledClient

    client = PooledClient(site.address("memcached"), max_pool_size=rivals.POOL, no_delay=True)
    site.at_end(client.close)

    def get(name: str) -> bytes:
        found: bytes | None = client.get(f"plain:{name}")
        if found is None:
            found = load(name)
            client.set(f"plain:{name}", found, expire=TTL)
        return found

    return get


def patient(site: Site, load: Load) -> Get:
    """Call a decorated function whose leases are short and whose callers wait long."""
    return ours(site, load, lease_for=LEASE_FOR, wait_for=10)


@dataclass(frozen=True)
class Stampedes:
    """How a row about herds is measured."""

    scenario: Scenario

    def __call__(self, row: Row, effort: Effort, tick: Tick) -> Outcome:
        """Let a herd loose on each side, round after round; waits are in ms beyond what nobody could avoid."""
        outcome = Outcome(samples={figure.name: {} for figure in row.figures})
        with Servers() as servers, Crowd(servers.address("memcached"), effort.seed) as crowd:
            began, rounds, least = time.monotonic(), 0, 1 if effort.quick else LEAST_ROUNDS
            order, sides = random.Random(effort.seed), list(row.sides)
            while rounds < least or time.monotonic() < began + effort.seconds:
                order.shuffle(sides)
                for side in sides:
                    if side.name not in outcome.missing:
                        self._round(crowd, side.name, Herd(self.scenario, side.open, f"{row.name}:{rounds}"), outcome)
                rounds += 1
                tick(min(rounds / least, (time.monotonic() - began) / effort.seconds, 1))
        return outcome

    def _round(self, crowd: Crowd, side: str, herd: Herd, outcome: Outcome) -> None:
        try:
            seen = crowd.run(herd)
        except (HerdError, ImportError) as error:
            outcome.missing[side] = missing(error)
            for samples in outcome.samples.values():
                samples.pop(side, None)
            return
        outcome.notes[side] = _note(crowd, seen)
        for figure, sample in self._sampled(seen).items():
            outcome.samples[figure].setdefault(side, []).append(sample)

    def _sampled(self, seen: Seen) -> dict[str, float]:
        waits = [(wait - self.scenario.unavoidable) * 1e3 for wait in seen.waits]
        return {
            LOADS: seen.loads,
            P50: percentile(waits, 0.5),
            P99: percentile(waits, 0.99),
            FAILED: len(seen.failures),
        }


def _note(crowd: Crowd, seen: Seen) -> str:
    """Say what of the last herd is not in its waits."""
    warm_up = percentile(seen.warm_ups, 0.5) * 1e3
    note = f"before the clock ran, {crowd.started_in:.1f} s to start the processes, {warm_up:.0f} ms for a first call"
    for failure, count in Counter(seen.failures).most_common(1):
        note += f"; {count} × {failure}"
    return note


COLD = Scenario(load_for=0.05)
KILLED = Scenario(load_for=0.05, killed_after=LEASE_FOR)
SLOW = Scenario(load_for=1.5)
RAISING = Scenario(load_for=0.05, raises=True)
