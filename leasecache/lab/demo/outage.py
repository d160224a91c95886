"""Steps about a daemon that is gone: what its data centre serves meanwhile, and what its return costs."""

import time
from typing import Any

from pymemcache.client.base import Client

from leasecache.guard import wire_key
from leasecache.lab.demo.report import Step
from leasecache.lab.demo.stage import GUARD_TTL, Site, Stage
from leasecache.lab.servers import wait_until

CHANGED = range(1001, 1501)  # media renamed while the daemon is dead
UNCHANGED = range(2001, 2101)
WITHIN = 30.0  # s


def why_the_guard(stage: Stage) -> Step:
    """Kill DC2's daemon and write rows: nobody removes the old values, and soon nobody is served one."""
    why = (
        f"kill -9 of DC2's daemon, {len(CHANGED):,} rows written. Its record in the cache runs out in {GUARD_TTL} s; "
        "who reads it with every hit does without the cache then, others would serve what lies there."
    )
    step = Step(8, "why the guard", why)
    get_media = stage.dc2.app.get_media
    before = wait_until(lambda: _filled(stage.dc2), WITHIN, "values in the cache")
    stage.dc2.daemon.kill()
    killed = time.perf_counter()
    with stage.primary.connection() as connection:
        rename = "update media set title = 'new ' || id where id between %s and %s"
        connection.execute(rename, [CHANGED[0], CHANGED[-1]])
    ran_out = _becomes(get_media, "uncached", GUARD_TTL + 1)  # memcached counts whole seconds
    lasted = time.perf_counter() - killed
    stage.dc2.servers.postgres.catch_up()
    old = _count_old(get_media)
    after = _in_memcached(stage.dc2, list(before))
    step.measure("old values left in the cache", len(before.items() & after.items()))
    step.measure("kill → the application does without them", lasted * 1e3, "ms")
    step.measure("old values served from then on", old)
    step.check("the old values are all there still", before == after)
    step.check("within its ttl the guard has run out", ran_out)
    step.check("not one of them is served", old == 0)
    return step


def killed_daemon(stage: Stage) -> Step:
    """Start the killed daemon again: it tells the cache what it has missed, and then vouches for it."""
    step = Step(9, "a daemon's return", "The slot has kept what was written while the daemon was dead.")
    get_media = stage.dc2.app.get_media
    began = time.perf_counter()
    stage.dc2.daemon.start()
    _becomes(get_media, "fresh", WITHIN)
    took = time.perf_counter() - began
    old = _count_old(get_media)
    kept = sum(get_media.peek(media_id) is not None for media_id in UNCHANGED)
    step.measure("restart → values come from the cache", took * 1e3, "ms")
    step.measure("old values served after it", old)
    step.measure("values that nobody changed, still cached", kept)
    step.check("every value that was changed is the new one", old == 0)
    step.check("they come from the cache", all(get_media.lookup(media_id).state == "fresh" for media_id in CHANGED))
    step.check("a restart does not empty the cache", kept == len(UNCHANGED))
    return step


def _filled(site: Site) -> dict[bytes, Any] | None:
    """Let the application cache all media; return what then lies under the keys of those to be changed, once all do."""
    site.app.get_media.get_many([*CHANGED, *UNCHANGED])
    generation = int(site.guard["generation"], 16)
    found = _in_memcached(site, [wire_key(generation, site.app.get_media.key(media_id)) for media_id in CHANGED])
    return found if len(found) == len(CHANGED) else None


def _in_memcached(site: Site, keys: list[bytes]) -> dict[bytes, Any]:
    client = Client(site.servers.memcached.address)
    found: dict[bytes, Any] = client.get_many(keys)
    client.close()
    return found


def _becomes(get_media: Any, state: str, within: float) -> bool:
    """Tell whether a changed media is served in that state in time (s)."""
    try:
        return bool(wait_until(lambda: get_media.lookup(CHANGED[0]).state == state, within, state))
    except TimeoutError:
        return False


def _count_old(get_media: Any) -> int:
    return sum(media.title != f"new {media_id}" for media_id, media in get_media.get_many(CHANGED).items())
