"""Clients and caches of others, opened the way their documentation shows; imported when they are first asked for."""

from collections.abc import Callable
from typing import Any

from loadtests.bench.site import Site, host_port

TTL = 3600  # s
TIME_LIMIT = 1.0  # s; what leasecache has by default
POOL = 64  # connections of a client that threads share
BUFFER = 64 * 1024  # bytes, which hold 100 values


def pymemcache(site: Site, timeout: float | None = None) -> Any:
    """Open a pymemcache client, by default without a time limit."""
    from pymemcache.client.base import Client

    client = Client(site.address("memcached"), connect_timeout=timeout, timeout=timeout, no_delay=True)
    site.at_end(client.close)
    return client


def pylibmc(site: Site) -> Any:
    """Open a pylibmc client: libmemcached, in C."""
    import pylibmc

    client = pylibmc.Client([site.address("memcached")], behaviors={"tcp_nodelay": True})
    site.at_end(client.disconnect_all)
    return client


def meta_memcache(site: Site) -> Any:
    """Open a meta-memcache client, with a pool for the threads of a herd."""
    from meta_memcache import CacheClient, ServerAddress, connection_pool_factory_builder

    return CacheClient.cache_client_from_servers(
        servers=[ServerAddress(*host_port(site.address("memcached")))],
        connection_pool_factory_fn=connection_pool_factory_builder(max_pool_size=POOL, read_buffer_size=BUFFER),
    )


def dogpile(backend: str, **arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return dogpile.cache's decorator on one of its backends."""
    from dogpile.cache import make_region

    region = make_region().configure(f"dogpile.cache.{backend}", expiration_time=TTL, arguments=arguments)
    decorator: Callable[[Callable[..., Any]], Any] = region.cache_on_arguments(
        backend, function_key_generator=short_key
    )
    return decorator


def short_key(namespace: str, fn: Callable[..., Any]) -> Callable[..., str]:
    """Make keys as short as ours: dogpile.cache's own name module and function, and its clients hash every byte."""
    return lambda media_id: f"{namespace:.5}:media:{media_id}"


def dogpile_pymemcache(site: Site, **arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return dogpile.cache's decorator on pymemcache."""
    return dogpile("pymemcache", url=[site.address("memcached")], **arguments)


def dogpile_pylibmc(site: Site) -> Callable[[Callable[..., Any]], Any]:
    """Return dogpile.cache's decorator on pylibmc."""
    return dogpile("pylibmc", url=[site.address("memcached")], behaviors={"tcp_nodelay": True})


def cashews(url: str) -> Any:
    """Return a cache of cashews."""
    from cashews import Cache

    cache = Cache()
    cache.setup(url)
    return cache
