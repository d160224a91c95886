"""From a configuration file to what was asked for: a running daemon, findings, or a setup."""

import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from leasecache.config import open_store
from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.catalog import Catalog, read_catalog
from leasecache.invalidation.daemon import Daemon
from leasecache.invalidation.ddl import Step, apply, find_primary, plan
from leasecache.invalidation.lint import Finding, lint
from leasecache.invalidation.logs import event
from leasecache.invalidation.router import Router
from leasecache.invalidation.server import StatusServer
from leasecache.invalidation.settings import Settings, load_rules, load_settings
from leasecache.invalidation.source import connect, redact
from leasecache.invalidation.status import Monitor
from leasecache.rules import RuleSet
from leasecache.stores.base import Store


class Configuration(NamedTuple):
    """What a configuration file says, understood."""

    settings: Settings
    rules: RuleSet  # under the namespace of the cache
    router: Router
    store: Store


def read_configuration(path: Path | None) -> Configuration:
    """Read a configuration without connecting to anything; None = the environment only.

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
    rules = RuleSet(namespace=store.namespace, rules=rules.rules)
    return Configuration(settings, rules, Router(rules), store)


def run_daemon(path: Path | None) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises ConfigError when it cannot start, GapError on lost changes."""
    settings, rules, router, store = read_configuration(path)
    monitor = Monitor()
    daemon = Daemon(settings.source, router, store, monitor)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    server = _serve(settings, monitor)
    try:
        _refuse_unfit(lint(rules, _inspect(settings, rules)))
        daemon.run()
    finally:
        if server is not None:
            server.close()
        store.close()


def find_faults(path: Path | None) -> list[Finding]:
    """Return what keeps the source from serving the rules. Raises ConfigError when the configuration is wrong."""
    settings, rules, *_ = read_configuration(path)
    try:
        return lint(rules, _inspect(settings, rules))
    except SourceError as error:
        return [Finding(code="unreachable", consequence=str(error))]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is to be run, and what no statement here can put right."""

    source: str  # dsn
    steps: list[Step]
    beyond: list[Finding]

    def apply(self, primary: str | None) -> None:
        """Run the steps. `primary` is the primary's DSN, needed when the source is a standby that does not tell."""
        if self.steps:
            apply(self.steps, self.source, find_primary(self.source, primary))


def plan_setup(path: Path | None) -> Setup:
    """Return the setup that the source needs. Raises ConfigError, and SourceError when it cannot be reached."""
    settings, rules, *_ = read_configuration(path)
    catalog = _inspect(settings, rules)
    beyond = [finding for finding in lint(rules, catalog) if finding.fatal and not finding.by_setup]
    return Setup(source=settings.source.dsn, steps=plan(catalog, rules), beyond=beyond)


def _inspect(settings: Settings, rules: RuleSet) -> Catalog:
    source = settings.source
    with connect(source.dsn) as connection:
        return read_catalog(connection, source.slot, source.publication, rules)


def _refuse_unfit(findings: list[Finding]) -> None:
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        more = f" ({len(fatal) - 1} more)" if len(fatal) > 1 else ""
        remedy = "setup --apply" if fatal[0].by_setup else "check"
        raise ConfigError(f"{fatal[0].sentence()}{more}; see `leasecache {remedy}`")


def _serve(settings: Settings, monitor: Monitor) -> StatusServer | None:
    if settings.status.address is None:
        return None
    server = StatusServer(settings.status.address, monitor)
    server.start()
    event(logging.INFO, "listening", address=server.address, source=redact(settings.source.dsn))
    return server
