"""From a configuration file to a running daemon."""

import logging
import os
import signal
from pathlib import Path

from leasecache.config import open_store
from leasecache.errors import ConfigError
from leasecache.invalidation.catalog import read_catalog
from leasecache.invalidation.daemon import Daemon
from leasecache.invalidation.lint import lint
from leasecache.invalidation.logs import event
from leasecache.invalidation.router import Router
from leasecache.invalidation.server import StatusServer
from leasecache.invalidation.settings import Settings, load_rules, load_settings
from leasecache.invalidation.source import connect, redact
from leasecache.invalidation.status import Monitor
from leasecache.rules import RuleSet
from leasecache.stores.base import Store


def read_configuration(path: Path | None) -> tuple[Settings, RuleSet, Store]:
    """Return settings, rules under the cache's namespace, and the store, without connecting to anything.

    Raises ConfigError when something is wrong or does not fit together.
    """
    settings = load_settings(path, os.environ)
    rules = load_rules(settings.rules, Path() if path is None else path.parent)
    if settings.cache.url.startswith(("memory:", "null:")):
        raise ConfigError("cache.url: a daemon reaches only caches on the network; memory:// lives inside one process")
    store = open_store(settings.cache.url)
    if rules.namespace is not None and rules.namespace != store.namespace:
        raise ConfigError(
            f"cache.url has namespace {store.namespace!r}, the rules were made under {rules.namespace!r}: "
            "keys would never match; use the application's URL"
        )
    return settings, RuleSet(namespace=store.namespace, rules=rules.rules), store


def run_daemon(path: Path | None) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises ConfigError when it cannot start, GapError on lost changes."""
    settings, rules, store = read_configuration(path)
    monitor = Monitor()
    daemon = Daemon(settings.source, Router(rules), store, monitor)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    server = _serve(settings, monitor)
    try:
        refuse_unfit(settings, rules)
        daemon.run()
    finally:
        if server is not None:
            server.close()
        store.close()


def refuse_unfit(settings: Settings, rules: RuleSet) -> None:
    """Raise ConfigError, in one line, when the source cannot serve the rules."""
    with connect(settings.source.dsn) as connection:
        catalog = read_catalog(connection, settings.source.slot, settings.source.publication, rules)
    findings = [finding for finding in lint(rules, catalog) if finding.fatal]
    if findings:
        more = f" ({len(findings) - 1} more)" if len(findings) > 1 else ""
        raise ConfigError(f"{findings[0].sentence()}{more}; run `leasecache check` for the remedy")


def _serve(settings: Settings, monitor: Monitor) -> StatusServer | None:
    if settings.status.address is None:
        return None
    server = StatusServer(settings.status.address, monitor)
    server.start()
    event(logging.INFO, "listening", address=server.address, source=redact(settings.source.dsn))
    return server
