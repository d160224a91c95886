"""Cache URLs: `memcached://host:port,host:port?namespace=shop`, `memory://`, `null://`. Parsing opens nothing."""

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from leasecache.errors import ConfigError
from leasecache.keys import key_prefix
from leasecache.stores.base import AsyncStore, Store

GUARDS = ("none",)
_DEFAULT_PORT = 11211
_PASSWORD = re.compile(r"(//[^@/?:]*:).*@")
_NODE = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:\*([1-9][0-9]?))?")

Option = float | int | bool | str
Reader = Callable[[str], Option]  # raises ValueError that says what is expected


def _number(text: str) -> float:
    return _above_zero(float, text)


def _count(text: str) -> int:
    return int(_above_zero(int, text))


def _above_zero(kind: type[float] | type[int], text: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise ValueError(f"must be a number above 0, not {text!r}")
    return value


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"must be true or false, not {text!r}")
    return text == "true"


def _path(text: str) -> str:
    if not os.access(text, os.R_OK):
        raise ValueError(f"names no file that can be read: {text!r}")
    return text


_MEMCACHED: dict[str, Reader] = {"timeout": _number, "connect_timeout": _number, "pool": _count, "proxied": _flag}
_TLS: dict[str, Reader] = {"ca": _path, "cert": _path, "key": _path}
_OPTIONS: dict[str, dict[str, Reader]] = {
    "memcached": _MEMCACHED,
    "memcacheds": _MEMCACHED | _TLS,
    "memory": {"capacity": _count},
    "null": {},
}


@dataclass(frozen=True, kw_only=True)
class CacheUrl:
    """A parsed cache URL."""

    scheme: str
    nodes: tuple[str, ...] = ()  # "host:port" or the path of a Unix socket
    weights: tuple[int, ...] = ()  # of each node: its share of the keys in proportion to the others'
    credentials: tuple[str, str] | None = field(default=None, repr=False)  # user and password
    namespace: str | None = None
    guard: str | None = None  # None = not said
    options: Mapping[str, Option] = field(default_factory=dict)


def parse_url(url: str) -> CacheUrl:
    """Parse a cache URL. Raises ConfigError naming the fault and the fix."""
    scheme, _, rest = url.partition("://")  # not urlsplit, which refuses an IPv6 address behind another node
    url = _PASSWORD.sub(r"\1***@", url)  # what errors show
    if scheme not in _OPTIONS or "://" not in url:
        raise ConfigError(f"cache URL {url!r}: the scheme must be one of {', '.join(f'{s}://' for s in _OPTIONS)}")
    address, _, text = rest.partition("?")
    if "***@" in url and "@" not in address:
        raise ConfigError(f"cache URL {url!r}: write @ as %40 in an option, and ? as %3F in a password")
    credentials, address = _credentials(url, scheme, address)
    nodes, weights = _nodes(url, scheme, address)
    query = _query(url, text)
    namespace, guard = query.pop("namespace", None), query.pop("guard", None)
    key_prefix(namespace)
    check_guard(guard)
    return CacheUrl(
        scheme=scheme,
        nodes=nodes,
        weights=weights,
        credentials=credentials,
        namespace=namespace,
        guard=guard,
        options={name: _option(url, scheme, name, text) for name, text in query.items()},
    )


def open_store(url: str) -> Store:
    """Return the store of a cache URL; it connects at first use. Raises ConfigError."""
    parsed = parse_url(url)
    if parsed.scheme == "memory":
        from leasecache.stores.memory import MemoryStore

        return MemoryStore(parsed.namespace, **parsed.options)  # type: ignore[arg-type]
    if parsed.scheme == "null":
        from leasecache.stores.null import NullStore

        return NullStore(parsed.namespace)
    from leasecache.stores.memcached import MemcachedNode
    from leasecache.stores.routed import RoutedStore

    options = memcached_options(parsed)
    return RoutedStore([MemcachedNode(name, **options) for name in parsed.nodes], parsed.namespace, parsed.weights)


def open_async_store(url: str) -> AsyncStore:
    """Return the asynchronous store of a cache URL; it connects at first use. Raises ConfigError."""
    parsed = parse_url(url)
    if parsed.scheme in ("memory", "null"):
        from leasecache.stores.alocal import AsyncLocalStore

        return AsyncLocalStore(open_store(url))  # type: ignore[arg-type]
    from leasecache.stores.amemcached import AsyncMemcachedNode
    from leasecache.stores.arouted import AsyncRoutedStore

    options = memcached_options(parsed)
    if "pool" in options:
        raise ConfigError("the cache URL has pool=, which AsyncCache has no use for: its tasks share one connection")
    nodes = [AsyncMemcachedNode(name, **options) for name in parsed.nodes]
    return AsyncRoutedStore(nodes, parsed.namespace, parsed.weights)


def memcached_options(parsed: CacheUrl) -> dict[str, Any]:
    """Return the keyword arguments of the nodes of a memcached URL."""
    from leasecache.stores.dial import Tls

    files = {name: str(parsed.options[name]) for name in _TLS if name in parsed.options}
    if "key" in files and "cert" not in files:
        raise ConfigError("the cache URL has key= without cert=, the certificate that belongs to it")
    options: dict[str, Any] = {name: value for name, value in parsed.options.items() if name not in _TLS}
    return options | {
        "credentials": parsed.credentials,
        "tls": Tls(**files) if parsed.scheme == "memcacheds" else None,
    }


def check_guard(guard: str | None) -> None:
    """Refuse a guard that this version does not have. Raises ConfigError."""
    if guard is not None and guard not in GUARDS:
        raise ConfigError(f"guard={guard!r} is not available; use guard='none' (leases, ttl, explicit invalidation)")


def _query(url: str, text: str) -> dict[str, str]:
    pairs = parse_qsl(text, keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise ConfigError(f"cache URL {url!r} gives an option twice")
    return query


def _credentials(url: str, scheme: str, address: str) -> tuple[tuple[str, str] | None, str]:
    """Split off `user:password@`."""
    if scheme not in ("memcached", "memcacheds") or "@" not in address:
        return None, address
    stated, _, rest = address.rpartition("@")
    user, password = (unquote(part) for part in stated.partition(":")[::2])
    if not user or not password or " " in user:
        raise ConfigError(f"cache URL {url!r}: before the @ stand a user and a password, as in user:password@host")
    return (user, password), rest


def _nodes(url: str, scheme: str, address: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if scheme not in ("memcached", "memcacheds"):
        if address.strip("/"):
            raise ConfigError(f"cache URL {url!r}: {scheme}:// takes no address; options follow a '?'")
        return (), ()
    if address.startswith("/") and address != "/":
        return (unquote(address),), (1,)
    if "/" in address.removesuffix("/"):
        raise ConfigError(f"cache URL {url!r}: expected {scheme}://host:port,host:port?namespace=name")
    found = dict(_node(url, part) for part in address.removesuffix("/").split(","))
    if len(found) != address.count(",") + 1:
        raise ConfigError(f"cache URL {url!r} names a node twice")
    return tuple(found), tuple(found.values())


def _node(url: str, text: str) -> tuple[str, int]:
    found = _NODE.fullmatch(text)
    port = int(found[2] or _DEFAULT_PORT) if found else 0
    if not found or not 0 < port < 65536:
        raise ConfigError(
            f"cache URL {url!r}: {text!r} is not host:port or host:port*weight; an IPv6 address stands in brackets"
        )
    return f"{found[1]}:{port}", int(found[3] or 1)


def _option(url: str, scheme: str, name: str, text: str) -> Option:
    known = [*_OPTIONS[scheme], "namespace", "guard"]
    if name not in _OPTIONS[scheme]:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        if name in _TLS and scheme == "memcached":
            hint = "TLS is memcacheds://"
        raise ConfigError(f"cache URL {url!r}: unknown option {name!r}; {hint}")
    try:
        return _OPTIONS[scheme][name](text)
    except ValueError as error:
        raise ConfigError(f"cache URL {url!r}: {name} {error}") from None
