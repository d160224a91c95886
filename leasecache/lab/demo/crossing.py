"""Steps across the ocean: what a write in DC1 does to the cache of DC2."""

import threading
import time
from dataclasses import dataclass, field
from functools import partial

import psycopg

from leasecache.cache import Cache
from leasecache.invalidation.lsn import parse_lsn
from leasecache.lab.demo.photos import Feed, declare
from leasecache.lab.demo.report import Step
from leasecache.lab.demo.stage import Site, Stage
from leasecache.lab.demo.timing import percentile
from leasecache.lab.servers import wait_until

COMMENTS = 200
DELAY = 0.3  # s that the standby's replay is held back
WITHIN = 30.0  # s


def started(stage: Stage) -> Step:
    """Tell what runs."""
    step = Step(
        1, "two data centres", "A primary with memcached in DC1, a standby with memcached in DC2, a daemon each."
    )
    for site in (stage.dc1, stage.dc2):
        name, [(version,)] = site.servers.name.upper(), site.app.database.rows("show server_version")
        step.measure(f"{name} PostgreSQL", f"{version}, {_role(site)}")
        step.measure(f"{name} memcached", site.servers.memcached.ask("version").split()[1])
        step.measure(f"{name} gate chosen", site.daemon.status()["gate"])
        wait_until(partial(_is_vouched_for, site), WITHIN, f"the guard record in {name}")
    [(likes, media)] = stage.primary.rows("select count(*), count(distinct media_id) from user_likes_media")
    step.measure("likes", likes)
    step.measure("on so many photos", media)
    step.check("DC1 decodes the primary behind the snapshot gate", stage.dc1.daemon.status()["gate"] == "snapshot")
    step.check("DC2 decodes its standby", stage.dc2.daemon.status()["gate"] == "standby")
    step.check(
        "the standby has all likes", stage.dc2.app.database.rows("select count(*) from user_likes_media")[0][0] == likes
    )
    return step


def _is_vouched_for(site: Site) -> bool:
    return bool(site.guard["state"] == "fresh")


def _role(site: Site) -> str:
    return "standby" if site.app.database.rows("select pg_is_in_recovery()")[0][0] else "primary"


def cross_invalidation(stage: Stage) -> Step:
    """Write comments in DC1 while DC2's cached feed is read all the time."""
    why = "A comment is written in DC1. DC2's cached feed is invalidated by its own standby's stream."
    step = Step(5, "across data centres", why)
    media_id = 77
    history = _History(stage.dc2, media_id)
    delays = []
    with history:
        for n in range(COMMENTS):
            delays.append(_comment_until_gone(stage, media_id, n, history))
    step.measure("commit → invalidated in DC2, p50", percentile(delays, 0.5) * 1e3, "ms")
    step.measure("commit → invalidated in DC2, p99", percentile(delays, 0.99) * 1e3, "ms")
    step.measure("reads checked against W meanwhile", history.reads)
    step.measure("of them served from the cache", history.hits)
    final = wait_until(lambda: _if_newest(stage.dc2, media_id, history.newest), WITHIN, "the last comment in DC2")
    step.check("DC2's feed shows the last comment", final.bodies[0] == f"comment {COMMENTS - 1}")
    step.check("no read was older than the acknowledged position W", not history.violations and history.bound > 0)
    return step


def _if_newest(site: Site, media_id: int, newest: int) -> Feed | None:
    feed: Feed = site.app.get_feed(media_id)
    return feed if feed.newest == newest else None


def _comment_until_gone(stage: Stage, media_id: int, n: int, history: "_History") -> float:
    """Write a comment; return the s from its commit until the feed cached before it has left DC2's cache."""
    get_feed = stage.dc2.app.get_feed
    wait_until(lambda: get_feed.lookup(media_id).state == "fresh", WITHIN, "a cached feed")
    [(comment,)] = stage.primary.rows(
        "insert into comments (media_id, author_id, body) values (%s, 1, %s) returning id", media_id, f"comment {n}"
    )
    committed = time.perf_counter()
    [(position,)] = stage.primary.rows("select pg_current_wal_insert_lsn()::text")
    history.wrote(comment, parse_lsn(position))
    while (entry := get_feed.peek(media_id)) is not None and entry.value.newest < comment:
        if time.perf_counter() - committed > WITHIN:
            raise TimeoutError(f"DC2's feed was not invalidated within {WITHIN:g} s")
    return time.perf_counter() - committed


@dataclass
class _History:
    """Reads DC2's feed all the time, and holds each read against what the daemon had acknowledged before it."""

    site: Site
    media_id: int
    reads: int = 0
    hits: int = 0
    bound: int = 0  # reads that had to show a comment which was written meanwhile
    newest: int = 0
    violations: list[str] = field(default_factory=list)
    _written: list[tuple[int, int]] = field(default_factory=list)  # (position after the commit, comment)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "_History":
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def wrote(self, comment: int, position: int) -> None:
        """Note a committed comment and a position that is not before the end of its commit."""
        self._written.append((position, comment))
        self.newest = comment

    def _read(self) -> None:
        while not self._over.is_set():
            acknowledged = self.site.daemon.acknowledged()
            least = max((comment for position, comment in list(self._written) if position <= acknowledged), default=0)
            entry = self.site.app.get_feed.lookup(self.media_id)
            self.reads += 1
            self.hits += entry.state == "fresh"
            self.bound += least > 0
            if entry.value.newest < least:
                self.violations.append(f"read {entry.value.newest} although {least} was acknowledged")


def why_the_gate(stage: Stage) -> Step:
    """Delay DC2's standby and invalidate DC2 from the primary's stream at once; then do the same with the daemon."""
    why = f"DC2's standby lags by {DELAY * 1000:.0f} ms. Invalidating at the primary's commit lets old rows back in."
    step = Step(6, "why the gate", why)
    media_id = 88
    stage.dc2.servers.postgres.delay_replay(DELAY)
    try:
        ungated = _without_gate(stage, media_id)
        gated, took = _with_gate(stage, media_id)
    finally:
        stage.dc2.servers.postgres.delay_replay(0)
    [(newest,)] = stage.primary.rows("select max(id) from comments where media_id = %s", media_id)
    step.measure("without a gate the cached feed ends at comment", ungated.newest)
    step.measure("with the gate", gated.newest)
    step.measure("the database has", newest)
    step.measure("commit → new feed in DC2, with the gate", took * 1e3, "ms")
    step.check("without a gate the feed is stale for good", ungated.newest < newest - 1)
    step.check("with the gate it is right", gated.newest == newest)
    step.check("the gate waited for the standby", took >= DELAY * 0.9)
    return step


def _without_gate(stage: Stage, media_id: int) -> Feed:
    """Delete the key as soon as the primary streams the change, read once in DC2, and see what stays cached.

    The keys have a namespace of their own, which the daemon does not know of.
    """
    url = f"{stage.dc2.servers.memcached.url}?namespace=ungated"
    with (
        Cache.from_url(url, guard="none") as cache,
        psycopg.connect(stage.dc1.servers.postgres.dsn(), autocommit=True) as primary,
    ):
        get_feed = declare(cache, stage.dc2.app.database).get_feed
        primary.execute("select pg_create_logical_replication_slot('ungated', 'pgoutput')")
        get_feed(media_id)
        comment = _comment(stage, media_id, "seen by the primary only")
        changes = b"select 1 from pg_logical_slot_get_binary_changes('ungated', null, null, 'proto_version', '1', "
        changes += b"'publication_names', 'leasecache')"
        wait_until(lambda: primary.execute(changes).fetchall(), WITHIN, "the primary's stream")
        get_feed.invalidate(media_id)
        get_feed(media_id)  # an honest lease, an honest read of the standby, and the wrong answer
        primary.execute("select pg_drop_replication_slot('ungated')")
        _wait_replayed(stage, media_id, comment)
        feed: Feed = get_feed(media_id)
        return feed


def _with_gate(stage: Stage, media_id: int) -> tuple[Feed, float]:
    """Write another comment and let DC2's daemon do the rest; readers go on all the time."""
    get_feed = stage.dc2.app.get_feed
    get_feed(media_id)
    comment = _comment(stage, media_id, "seen by everybody")
    committed = time.perf_counter()
    feed = wait_until(lambda: _if_newest(stage.dc2, media_id, comment), WITHIN, "the new feed in DC2")
    return feed, time.perf_counter() - committed


def _comment(stage: Stage, media_id: int, body: str) -> int:
    statement = "insert into comments (media_id, author_id, body) values (%s, 1, %s) returning id"
    return int(stage.primary.rows(statement, media_id, body)[0][0])


def _wait_replayed(stage: Stage, media_id: int, comment: int) -> None:
    query = "select max(id) from comments where media_id = %s"
    shown = stage.dc2.app.database.rows
    wait_until(lambda: shown(query, media_id)[0][0] >= comment, WITHIN, "the comment on the standby")
