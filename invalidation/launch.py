"""The daemon's launch: from a configuration file to a running daemon."""

import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from leasecache.config import CacheUrl, parse_url
from leasecache.errors import ConfigError
from leasecache.invalidation.configuration import read_configuration
from leasecache.invalidation.daemon import Daemon, Work
from leasecache.invalidation.dispatch import Terms
from leasecache.invalidation.inspection import inspect, refuse_unfit
from leasecache.invalidation.lint import lint
from leasecache.invalidation.logs import event
from leasecache.invalidation.mailbox import Naming
from leasecache.invalidation.server import StatusServer
from leasecache.invalidation.settings import Settings
from leasecache.invalidation.signals import end_by
from leasecache.invalidation.source import redact
from leasecache.invalidation.status import Monitor

PATIENCE = 0.0005  # s that the loop waits for a thread that draws a page; Python's own default is ten times that


def run_daemon(path: Path | None) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises ConfigError when it cannot start, GapError on lost changes."""
    settings, rules, router, stores = read_configuration(path)
    terms = _terms(settings)
    nodes = [node.name for store in stores for node in store.nodes]
    monitor = Monitor(nodes, rules.rules, all_guarded=not terms.naming.unguarded, limit=settings.status.lag)
    work = Work(
        router=router,
        rules=rules,
        rings=stores,
        terms=terms,
        drift_every=settings.drift.every,
        # without a guard no new generation can stand for keys
        transaction_keys=settings.limits.transaction_keys if terms.naming.guarded else sys.maxsize,
    )
    daemon = Daemon(settings.source, work, monitor)
    server = _serve(settings, monitor)
    try:
        refuse_unfit(lint(rules, inspect(settings.source, rules)))
        gc.freeze()  # what is there by now stays, and looking it over takes longer than a transaction
        sys.setswitchinterval(PATIENCE)
        end_by(daemon.stop)
        daemon.run()
    finally:
        if server is not None:
            server.close()
        for store in stores:
            store.close()


def _terms(settings: Settings) -> Terms:
    """Return what is promised: who guards, by the caches' URLs; where none says so, some clients may and some may not.

    Without `journal.directory` the journal is where systemd keeps the state of a service, if it runs us.
    """
    guards = _guards([parse_url(url) for url in _urls(settings)])
    if guards != {"none"} and not settings.guard.ttl and any("+sentinel://" in url for url in _urls(settings)):
        raise ConfigError(
            "guard.ttl: records that do not run out would have to be waited for at each failover, for ever; "
            "with redis+sentinel:// write 60"
        )
    directory = settings.journal.directory or os.environ.get("STATE_DIRECTORY")
    return Terms(
        naming=Naming(guarded=guards != {"none"}, unguarded=guards != {"daemon"}),
        guard_ttl=settings.guard.ttl,
        journal=Path(directory) if directory else None,
        journal_limit=settings.journal.limit,
        others=tuple(sorted({*settings.guard.slots} - {settings.source.slot})),
    )


def _urls(settings: Settings) -> Sequence[str]:
    return (settings.cache.url, *settings.cache.more)


def _guards(urls: Sequence[CacheUrl]) -> set[str | None]:
    """Return what the URLs say of guards; a Redis cluster has none. Raises ConfigError where others have one."""
    clusters = [url.scheme for url in urls if url.scheme.endswith("+cluster")]
    guards = {"none" if url.scheme in clusters else url.guard for url in urls}
    if clusters and guards != {"none"}:
        raise ConfigError(
            f"[cache]: a {clusters[0]}:// cache has no guard, so it cannot stand beside caches that may have one; "
            "give it a daemon and a slot of its own, or write guard=none in the other URLs"
        )
    return guards


def _serve(settings: Settings, monitor: Monitor) -> StatusServer | None:
    if settings.status.address is None:
        return None
    server = StatusServer(settings.status.address, monitor)
    server.start()
    event(logging.INFO, "listening", address=server.address, source=redact(settings.source.dsn))
    return server
