"""`leasecache stats`: what the nodes of a cache tell about themselves."""

import contextlib
import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasecache.commands import AsJson, print_table

if TYPE_CHECKING:
    from leasecache.errors import NodeError
    from leasecache.guard import Record
    from leasecache.stores.base import LeaseNode
    from leasecache.stores.routed import RoutedStore

CacheUrl = Annotated[
    str,
    typer.Option(
        "--cache", metavar="URL", envvar="LEASECACHE_CACHE_URL", help="The application's URL, with its namespace."
    ),
]
Watch = Annotated[
    int | None,
    typer.Option("--watch", metavar="SECONDS", min=1, max=86400, help="Look again every so often, until interrupted."),
]

_FIGURES = ("version", "uptime", "items", "memory", "hits", "misses", "ratio", "sets", "evicted", "conns", "guard")


def open_networked(url: str) -> "RoutedStore":
    """Return the store of a cache that other processes reach, too. Raises ConfigError for any other."""
    from leasecache.config import open_store
    from leasecache.errors import ConfigError
    from leasecache.stores.routed import RoutedStore

    store = open_store(url)
    if not isinstance(store, RoutedStore):
        scheme = url.partition("://")[0]
        raise ConfigError(
            f"{scheme}:// lives inside one process, there is nothing to look at; give its memcached:// or redis:// URL"
        )
    return store


def read_record(store: "RoutedStore", node: "LeaseNode") -> "tuple[Record | None, float | None]":
    """Return a node's guard record, None = absent, and the s that it has left. Raises NodeError."""
    from leasecache.guard import Record, guard_key

    found = node.look(guard_key(store.namespace))
    return (None, None) if found is None else (Record.from_bytes(found.value), found.expires_in)


def stats(cache: CacheUrl, watch: Watch = None, as_json: AsJson = False) -> None:
    """Print each node's own figures, and the guard record of the URL's namespace there.

    To memcached a lease is a hit, and the load that follows it is a set.
    """
    from rich.console import Console

    store = open_networked(cache)
    if watch is None:
        for error in _print(store, 2 if as_json else None):
            raise error
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            Console().clear()  # a terminal; a file or pipe gets one look after the other
            for error in _print(store, 0 if as_json else None):
                typer.echo(f"leasecache: {error}", err=True)
            time.sleep(watch)


def _print(store: "RoutedStore", indent: int | None) -> list["NodeError"]:
    """Print the figures of the nodes that answer, None as a table, else as JSON; return why the others did not."""
    from leasecache.errors import NodeError

    figures, failures = [], []
    for node in store.nodes:
        try:
            several = _told(node)  # before the look at the record, which counts, too
            guard = _guard(store, node)
            figures += [{"node": name, **_figures(told), "guard": guard} for name, told in several]
        except NodeError as error:
            failures.append(error)
    if indent is not None:
        typer.echo(json.dumps(figures, indent=indent or None))
    elif figures:
        _show(figures)
    return failures


def _told(node: "LeaseNode") -> list[tuple[str, Mapping[str, Any]]]:
    """Return what a node tells by its name; a Redis cluster, which routes by itself, is a node of many."""
    told = node.stats()
    several = all(isinstance(figures, Mapping) for figures in told.values())
    return list(told.items()) if several else [(node.name, told)]


def _guard(store: "RoutedStore", node: "LeaseNode") -> dict[str, Any] | None:
    """Return what the node's guard record says: who may believe it, and for how long; None = absent."""
    record, expires_in = read_record(store, node)
    if record is None:
        return None
    return {
        "generation": f"{record.generation:016x}",
        "expires_in": expires_in,  # s
        "serves_these_nodes": store.mark in record.rings,
        "functions": len(record.rules),
    }


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    return _of_redis(told) if "redis_version" in told else _of_memcached(told)


def _of_memcached(told: Mapping[str, Any]) -> dict[str, Any]:
    """Pick from memcached's general-purpose statistics (its doc/protocol.txt).

    It counts a lease-get that finds nothing as a hit, on the stub that the lease-get makes; what was loaded is a set.
    """
    hits, misses = told["get_hits"], told["get_misses"]
    return {
        "version": told["version"].decode(),
        "uptime": told["uptime"],  # s
        "items": told["curr_items"],
        "bytes": told["bytes"],
        "limit": told["limit_maxbytes"],  # bytes
        "hits": hits,
        "misses": misses,
        "hit_ratio": _ratio(hits, misses),
        "sets": told["cmd_set"],
        "evictions": told["evictions"],
        "connections": told["curr_connections"],
    }


def _of_redis(told: Mapping[str, Any]) -> dict[str, Any]:
    """Pick from the reply to INFO (Redis documentation), which does not tell how often something was stored.

    A lease is a key beside that of its value, so that one call may be a hit and a miss.
    """
    hits, misses = told["keyspace_hits"], told["keyspace_misses"]
    databases = [text for name, text in told.items() if re.fullmatch("db[0-9]+", name)]
    return {
        "version": told["redis_version"],
        "uptime": told["uptime_in_seconds"],
        "items": sum(int(text.partition("keys=")[2].partition(",")[0]) for text in databases),
        "bytes": told["used_memory"],
        "limit": told["maxmemory"] or None,
        "hits": hits,
        "misses": misses,
        "hit_ratio": _ratio(hits, misses),
        "sets": None,
        "evictions": told["evicted_keys"],
        "connections": told["connected_clients"],
    }


def _ratio(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def _show(figures: list[dict[str, Any]]) -> None:
    from rich.table import Column, Table

    table = Table("node", *(Column(name, justify="right", overflow="fold") for name in _FIGURES))
    for node in figures:
        table.add_row(*_cells(node))
    print_table(table)


def _shown(guard: Mapping[str, Any] | None) -> str:
    if guard is None:
        return "-"
    return f"{guard['expires_in']:.0f} s" if guard["serves_these_nodes"] else "of other nodes"


def _cells(node: dict[str, Any]) -> list[str]:
    from datetime import timedelta

    from rich.filesize import decimal

    return [
        node["node"],
        node["version"],
        str(timedelta(seconds=node["uptime"])),
        f"{node['items']:,}",
        decimal(node["bytes"]) + (f" of {decimal(node['limit'])}" if node["limit"] else ""),
        f"{node['hits']:,}",
        f"{node['misses']:,}",
        "-" if node["hit_ratio"] is None else f"{node['hit_ratio']:.1%}",
        "-" if node["sets"] is None else f"{node['sets']:,}",
        f"{node['evictions']:,}",
        f"{node['connections']:,}",
        _shown(node["guard"]),
    ]
