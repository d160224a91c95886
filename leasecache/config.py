"""Cache URLs: `memcached://host:port,host:port?namespace=shop`, `memory://`, `null://`. Parsing opens nothing."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from leasecache.errors import ConfigError
from leasecache.keys import key_prefix
from leasecache.stores.base import Store

GUARDS = ("none",)
_DEFAULT_PORT = 11211
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
    parts = urlsplit(url)
    if parts.scheme not in _OPTIONS:
        raise ConfigError(f"cache URL {url!r}: the scheme must be one of {', '.join(f'{s}://' for s in _OPTIONS)}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    namespace, guard = query.pop("namespace", None), query.pop("guard", None)
    key_prefix(namespace)
    check_guard(guard)
    return CacheUrl(
        scheme=parts.scheme,
        nodes=_nodes(url, parts.netloc, unquote(parts.path)) if parts.scheme == "memcached" else (),
        namespace=namespace,
        guard=guard,
        options={name: _option(url, parts.scheme, name, text) for name, text in query.items()},
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
    from leasecache.stores.memcached import MemcachedNode, MemcachedStore

    nodes = [MemcachedNode(name, **parsed.options) for name in parsed.nodes]  # type: ignore[arg-type]
    return MemcachedStore(nodes, parsed.namespace)


def check_guard(guard: str | None) -> None:
    """Refuse a guard that this version does not have. Raises ConfigError."""
    if guard is not None and guard not in GUARDS:
        raise ConfigError(f"guard={guard!r} is not available; use guard='none' (leases, ttl, explicit invalidation)")


def _nodes(url: str, netloc: str, path: str) -> tuple[str, ...]:
    if not netloc and path:
        return (path,)
    if "@" in netloc or path not in ("", "/"):
        raise ConfigError(f"cache URL {url!r}: expected memcached://host:port,host:port?namespace=name")
    nodes = tuple(_node(url, part) for part in netloc.split(","))
    if len(set(nodes)) != len(nodes):
        raise ConfigError(f"cache URL {url!r} names a node twice")
    return nodes


def _node(url: str, text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_DEFAULT_PORT)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"cache URL {url!r}: {text!r} is not host:port")
    return f"{host}:{port}"


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
