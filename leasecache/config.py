"""Cache URLs: `memcached://host:port,host:port?namespace=shop`, `memory://`, `null://`. Parsing opens nothing."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from leasecache.errors import ConfigError
from leasecache.keys import key_prefix
from leasecache.stores.base import Store

GUARDS = ("none",)
_DEFAULT_PORT = 11211
_PASSWORD = re.compile(r"(//[^@/?]*:)[^@/?]*@")  # what another scheme would have; ours take none
_NODE = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_OPTIONS: dict[str, dict[str, type]] = {
    "memcached": {"timeout": float, "connect_timeout": float, "pool": int},
    "memory": {"capacity": int},
    "null": {},
}


@dataclass(frozen=True, kw_only=True)
class CacheUrl:
    """A parsed cache URL."""

    scheme: str
    nodes: tuple[str, ...] = ()  # "host:port" or the path of a Unix socket
    namespace: str | None = None
    guard: str | None = None  # None = not said
    options: Mapping[str, float | int] = field(default_factory=dict)


def parse_url(url: str) -> CacheUrl:
    """Parse a cache URL. Raises ConfigError naming the fault and the fix."""
    scheme, _, rest = url.partition("://")  # not urlsplit, which refuses an IPv6 address behind another node
    url = _PASSWORD.sub(r"\1***@", url)  # what errors show
    if scheme not in _OPTIONS or "://" not in url:
        raise ConfigError(f"cache URL {url!r}: the scheme must be one of {', '.join(f'{s}://' for s in _OPTIONS)}")
    address, _, text = rest.partition("?")
    query = _query(url, text)
    namespace, guard = query.pop("namespace", None), query.pop("guard", None)
    key_prefix(namespace)
    check_guard(guard)
    return CacheUrl(
        scheme=scheme,
        nodes=_nodes(url, scheme, address),
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

    nodes = [MemcachedNode(name, **parsed.options) for name in parsed.nodes]  # type: ignore[arg-type]
    return RoutedStore(nodes, parsed.namespace)


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


def _nodes(url: str, scheme: str, address: str) -> tuple[str, ...]:
    if scheme != "memcached":
        if address.strip("/"):
            raise ConfigError(f"cache URL {url!r}: {scheme}:// takes no address; options follow a '?'")
        return ()
    if address.startswith("/") and address != "/":
        return (unquote(address),)
    if "@" in address or "/" in address.removesuffix("/"):
        raise ConfigError(f"cache URL {url!r}: expected memcached://host:port,host:port?namespace=name")
    nodes = tuple(_node(url, part) for part in address.removesuffix("/").split(","))
    if len(set(nodes)) != len(nodes):
        raise ConfigError(f"cache URL {url!r} names a node twice")
    return nodes


def _node(url: str, text: str) -> str:
    found = _NODE.fullmatch(text)
    port = int(found[2] or _DEFAULT_PORT) if found else 0
    if not found or not 0 < port < 65536:
        raise ConfigError(f"cache URL {url!r}: {text!r} is not host:port; an IPv6 address stands in brackets")
    return f"{found[1]}:{port}"


def _option(url: str, scheme: str, name: str, text: str) -> float | int:
    known = [*_OPTIONS[scheme], "namespace", "guard"]
    if name not in _OPTIONS[scheme]:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        raise ConfigError(f"cache URL {url!r}: unknown option {name!r}; {hint}")
    try:
        value: float | int = _OPTIONS[scheme][name](text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise ConfigError(f"cache URL {url!r}: {name} must be a number above 0, not {text!r}")
    return value
