"""Cache URLs: `memcached://host:port,host:port?namespace=shop`, `redis://host:port/0`, `memory://`, `null://`.

Redis also by `redis+sentinel://host:port,host:port/service/0`, by `redis+cluster://host:port,host:port` and by the path
of a Unix socket, `redis:///run/redis.sock?db=0`; over TLS `rediss`. Parsing opens nothing.
"""

import difflib
import importlib
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

GUARDS = ("none", "daemon")
_PORTS = {"memcached": 11211, "redis": 6379, "redis+cluster": 6379, "redis+sentinel": 26379}
_FORMS = {
    "memcached": "host:port,host:port?namespace=name",
    "redis": "host:port/database",
    "redis+cluster": "host:port,host:port",
    "redis+sentinel": "host:port,host:port/service/database",
}
_SECURED = {"memcacheds": "memcached", "rediss": "redis", "rediss+cluster": "redis+cluster"}
_SECURED |= {"rediss+sentinel": "redis+sentinel"}  # over TLS → the same without
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


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"must be the number of a database, not {text!r}")
    return int(text)


def _path(text: str) -> str:
    if not os.access(text, os.R_OK):
        raise ValueError(f"names no file that can be read: {text!r}")
    return text


_MEMCACHED: dict[str, Reader] = {"timeout": _number, "connect_timeout": _number, "pool": _count, "proxied": _flag}
_TLS: dict[str, Reader] = {"ca": _path, "cert": _path, "key": _path}
_REDIS: dict[str, Reader] = {"timeout": _number, "connect_timeout": _number, "pool": _count}
_OPTIONS: dict[str, dict[str, Reader]] = {
    "memcached": _MEMCACHED,
    "memcacheds": _MEMCACHED | _TLS,
    "redis": _REDIS | {"db": _index},
    "rediss": _REDIS | _TLS,
    "redis+sentinel": _REDIS,
    "rediss+sentinel": _REDIS | _TLS,
    "redis+cluster": _REDIS,
    "rediss+cluster": _REDIS | _TLS,
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
    service: str | None = None  # the Sentinels' name of a Redis primary
    db: int = 0  # the number of a Redis database
    namespace: str | None = None
    guard: str | None = None  # None = not said
    options: Mapping[str, Option] = field(default_factory=dict)


def parse_url(url: str) -> CacheUrl:
    """Parse a cache URL. Raises ConfigError naming the fault and the fix."""
    if not isinstance(url, str):  # an environment variable that is not set
        raise ConfigError(f"a cache URL is text such as 'memcached://host:port', not {url!r}")
    scheme, _, rest = url.partition("://")  # not urlsplit, which refuses an IPv6 address behind another node
    url = _PASSWORD.sub(r"\1***@", url)  # what errors show
    if scheme not in _OPTIONS or "://" not in url:
        raise ConfigError(f"cache URL {url!r}: the scheme must be one of {', '.join(f'{s}://' for s in _OPTIONS)}")
    address, _, text = rest.partition("?")
    if "***@" in url and "@" in text:
        raise ConfigError(f"cache URL {url!r}: write @ as %40 in an option, and ? as %3F in a password")
    credentials, address = _credentials(url, scheme, address)
    address, service, db = _database(url, scheme, address)
    nodes, weights = _nodes(url, scheme, address)
    query = _query(url, text)
    namespace, guard = query.pop("namespace", None), query.pop("guard", None)
    key_prefix(namespace)
    check_guard(guard)
    options = {name: _option(url, scheme, name, text) for name, text in query.items()}
    if "db" in options and not address.startswith("/"):
        raise ConfigError(f"cache URL {url!r}: the database stands behind the address, as in {scheme}://host:port/1")
    return CacheUrl(
        scheme=scheme,
        nodes=nodes,
        weights=weights,
        credentials=credentials,
        service=service,
        db=int(options.pop("db", db)),
        namespace=namespace,
        guard=guard,
        options=options,
    )


def open_store(url: str, *, guarded: bool | None = None) -> Store:
    """Return the store of a cache URL; it connects at first use. Raises ConfigError.

    `guarded`: an invalidation daemon vouches for its nodes; None = as the URL says. In this process nothing is guarded.
    """
    parsed = parse_url(url)
    guarded = _check_guardable(parsed, parsed.guard == "daemon" if guarded is None else guarded)
    if parsed.scheme == "memory":
        from leasecache.stores.memory import MemoryStore

        return MemoryStore(parsed.namespace, **parsed.options)  # type: ignore[arg-type]
    if parsed.scheme == "null":
        from leasecache.stores.null import NullStore

        return NullStore(parsed.namespace)
    from leasecache.stores.routed import RoutedStore

    if parsed.scheme.startswith("redis"):
        nodes = _redis("leasecache.stores.redis_nodes").nodes(**_redis_options(parsed))
        return RoutedStore(nodes, parsed.namespace, parsed.weights, guarded=guarded)
    from leasecache.stores.memcached import MemcachedNode

    options = memcached_options(parsed)
    memcached = [MemcachedNode(name, **options) for name in parsed.nodes]
    return RoutedStore(memcached, parsed.namespace, parsed.weights, guarded=guarded)


def open_async_store(url: str, *, guarded: bool | None = None) -> AsyncStore:
    """Return the asynchronous store of a cache URL, as `open_store` does. Raises ConfigError."""
    parsed = parse_url(url)
    guarded = _check_guardable(parsed, parsed.guard == "daemon" if guarded is None else guarded)
    if parsed.scheme in ("memory", "null"):
        from leasecache.stores.alocal import AsyncLocalStore

        return AsyncLocalStore(open_store(url))  # type: ignore[arg-type]
    from leasecache.stores.arouted import AsyncRoutedStore

    if parsed.scheme.startswith("redis"):
        found = _redis("leasecache.stores.aredis_nodes").nodes(**_redis_options(parsed))
        return AsyncRoutedStore(found, parsed.namespace, parsed.weights, guarded=guarded)
    from leasecache.stores.amemcached import AsyncMemcachedNode

    options = memcached_options(parsed)
    if "pool" in options:
        raise ConfigError("the cache URL has pool=, which AsyncCache has no use for: its tasks share one connection")
    nodes = [AsyncMemcachedNode(name, **options) for name in parsed.nodes]
    return AsyncRoutedStore(nodes, parsed.namespace, parsed.weights, guarded=guarded)


def _check_guardable(parsed: CacheUrl, guarded: bool) -> bool:
    if guarded and parsed.scheme.endswith("+cluster"):
        raise ConfigError(
            f"{parsed.scheme}:// has no guard='daemon': a slot moves between servers with its keys but without the "
            "record that vouches for them; name single servers, redis://host:port,host:port, or redis+sentinel://"
        )
    return guarded


def memcached_options(parsed: CacheUrl) -> dict[str, Any]:
    """Return the keyword arguments of the nodes of a memcached URL."""
    options: dict[str, Any] = {name: value for name, value in parsed.options.items() if name not in _TLS}
    return options | {"credentials": parsed.credentials, "tls": _tls(parsed)}


def _redis_options(parsed: CacheUrl) -> dict[str, Any]:
    options: dict[str, Any] = {name: value for name, value in parsed.options.items() if name not in _TLS}
    user, password = parsed.credentials or (None, None)
    given = {"names": parsed.nodes, "cluster": parsed.scheme.endswith("+cluster"), "service": parsed.service}
    return options | given | {"username": user or None, "password": password, "db": parsed.db, "tls": _tls(parsed)}


def _redis(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise ConfigError("a redis:// cache needs redis-py; run: pip install 'leasecache[redis]'") from None


def _tls(parsed: CacheUrl) -> Any:
    from leasecache.stores.dial import Tls

    files = {name: str(parsed.options[name]) for name in _TLS if name in parsed.options}
    if "key" in files and "cert" not in files:
        raise ConfigError("the cache URL has key= without cert=, the certificate that belongs to it")
    return Tls(**files) if parsed.scheme in _SECURED else None


def check_guard(guard: str | None) -> None:
    """Refuse a guard that there is not. Raises ConfigError."""
    if guard is not None and guard not in GUARDS:
        raise ConfigError(
            f"guard={guard!r} is not known; it is 'none' (leases, ttl, explicit invalidation) or 'daemon' (an "
            "invalidation daemon follows the database)"
        )


def _query(url: str, text: str) -> dict[str, str]:
    pairs = parse_qsl(text, keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise ConfigError(f"cache URL {url!r} gives an option twice")
    return query


def _credentials(url: str, scheme: str, address: str) -> tuple[tuple[str, str] | None, str]:
    """Split off `user:password@`; Redis has a default user."""
    if _plain(scheme) not in _FORMS or "@" not in address:
        return None, address
    stated, _, rest = address.rpartition("@")
    user, password = (unquote(part) for part in stated.partition(":")[::2])
    redis = scheme.startswith("redis")
    if not (user or redis) or not password or " " in user:
        form = ":password@host or user:password@host" if redis else "user:password@host"
        raise ConfigError(f"cache URL {url!r}: before the @ stand a user and a password, as in {form}")
    return (user, password), rest


def _database(url: str, scheme: str, address: str) -> tuple[str, str | None, int]:
    """Split off what stands behind the nodes of Redis: the service and the number of the database."""
    if not scheme.startswith("redis") or address.startswith("/"):
        return address, None, 0
    nodes, _, rest = address.partition("/")
    parts = rest.removesuffix("/").split("/") if rest else []
    service = unquote(parts.pop(0)) if parts and scheme.endswith("+sentinel") else None
    database = parts.pop(0) if parts and not scheme.endswith("+cluster") else "0"
    if parts or not database.isdecimal() or (service is None and scheme.endswith("+sentinel")):
        raise _misshaped(url, scheme)
    return nodes, service, int(database)


def _nodes(url: str, scheme: str, address: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    kind = _plain(scheme)
    if kind not in _FORMS:
        if address.strip("/"):
            raise ConfigError(f"cache URL {url!r}: {scheme}:// takes no address; options follow a '?'")
        return (), ()
    if address.startswith("/") and address != "/" and "+" not in scheme and scheme != "rediss":
        if "," in address:
            raise ConfigError(
                f"cache URL {url!r}: {scheme}:/// takes one Unix socket; write a comma in its path as %2C"
            )
        return (unquote(address),), (1,)
    if "/" in address.removesuffix("/"):
        raise _misshaped(url, scheme)
    found = dict(_node(url, part, _PORTS[kind]) for part in address.removesuffix("/").split(","))
    if len(found) != address.count(",") + 1:
        raise ConfigError(f"cache URL {url!r} names a node twice")
    if "+" not in scheme:
        return tuple(found), tuple(found.values())
    if set(found.values()) != {1}:
        raise ConfigError(f"cache URL {url!r}: {scheme}:// takes no weights; Redis says who owns a key")
    return tuple(found), (1,)


def _node(url: str, text: str, default: int) -> tuple[str, int]:
    found = _NODE.fullmatch(text)
    port = int(found[2] or default) if found else 0
    if not found or not 0 < port < 65536:
        raise ConfigError(
            f"cache URL {url!r}: {text!r} is not host:port or host:port*weight; an IPv6 address stands in brackets"
        )
    return f"{found[1]}:{port}", int(found[3] or 1)


def _plain(scheme: str) -> str:
    return _SECURED.get(scheme, scheme)


def _misshaped(url: str, scheme: str) -> ConfigError:
    return ConfigError(f"cache URL {url!r}: expected {scheme}://{_FORMS[_plain(scheme)]}")


def _option(url: str, scheme: str, name: str, text: str) -> Option:
    known = [*_OPTIONS[scheme], "namespace", "guard"]
    if name not in _OPTIONS[scheme]:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        secured = [over_tls for over_tls, plain in _SECURED.items() if plain == scheme]
        if name in _TLS and secured:
            hint = f"TLS is {secured[0]}://"
        raise ConfigError(f"cache URL {url!r}: unknown option {name!r}; {hint}")
    try:
        return _OPTIONS[scheme][name](text)
    except ValueError as error:
        raise ConfigError(f"cache URL {url!r}: {name} {error}") from None
