"""From a configuration file to what it says, understood: settings, rules, and the caches to invalidate on."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from leasecache.config import open_store
from leasecache.errors import ConfigError
from leasecache.invalidation.router import Router
from leasecache.invalidation.settings import CacheSettings, Settings, load_rules, load_settings
from leasecache.invalidation.source import check_dsn
from leasecache.rules import RuleSet
from leasecache.stores.base import Store


class Configuration(NamedTuple):
    """What a configuration file says, understood."""

    settings: Settings
    rules: RuleSet  # under the namespace of the caches
    router: Router
    stores: tuple[Store, ...]  # that of cache.url first, then those of cache.more


def read_configuration(path: Path | None) -> Configuration:
    """Read a configuration without connecting to anything; None = the environment only.

    Raises ConfigError when something is wrong or does not fit together.
    """
    settings = load_settings(path, os.environ)
    for i, dsn in enumerate((settings.source.dsn, *settings.source.readers)):
        check_dsn("source.dsn" if i == 0 else f"source.readers[{i - 1}]", dsn)
    rules = load_rules(settings.rules, Path() if path is None else path.parent)
    with ExitStack() as opened:
        stores = _open_stores(settings.cache, opened)
        namespace = stores[0].namespace
        if rules.namespace is not None and rules.namespace != namespace:
            raise ConfigError(
                f"cache.url has namespace {namespace!r}, the rules were made under {rules.namespace!r}: "
                "keys would never match; use the application's URL"
            )
        rules = RuleSet(namespace=namespace, rules=rules.rules)
        router = Router(rules)
        opened.pop_all()
    return Configuration(settings, rules, router, stores)


def _open_stores(settings: CacheSettings, opened: ExitStack) -> tuple[Store, ...]:
    named = {"cache.url": settings.url, **{f"cache.more[{i}]": url for i, url in enumerate(settings.more)}}
    stores: list[Store] = []
    for key, url in named.items():
        if url.startswith(("memory:", "null:")):
            raise ConfigError(f"{key}: a daemon reaches only caches on the network; memory:// lives inside one process")
        store = _open(key, url)
        opened.callback(store.close)
        if stores and store.namespace != stores[0].namespace:
            raise ConfigError(
                f"{key} has namespace {store.namespace!r}, cache.url has {stores[0].namespace!r}: "
                "the rules of a daemon are under one namespace; run another daemon for the other"
            )
        stores.append(store)
    if len(set(named.values())) < len(named):
        raise ConfigError("cache.more names a cache twice; name each once")
    return tuple(stores)


def _open(key: str, url: str) -> Store:
    try:
        return open_store(url)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
