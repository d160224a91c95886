"""Two data centres: the primary with a cache in one, a standby that follows it with a cache in the other."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from leasecache.lab.memcached import MemcachedServer
from leasecache.lab.postgres import PostgresServer, Setting


@dataclass(frozen=True, kw_only=True)
class DataCentre:
    """What an application in one data centre talks to."""

    name: str
    postgres: PostgresServer
    memcached: MemcachedServer


@contextmanager
def two_data_centres(
    version: int = 18, *, settings: Mapping[str, Setting] | None = None
) -> Iterator[tuple[DataCentre, DataCentre]]:
    """Run two data centres and yield them, that of the primary first.

    `version` is the major version of Postgres, 16 or 18; `settings` go to both its nodes.
    """
    with ExitStack() as servers:
        primary = servers.enter_context(PostgresServer(version, name="dc1", settings=settings))
        standby = servers.enter_context(primary.standby("dc2"))
        yield (
            DataCentre(name="dc1", postgres=primary, memcached=servers.enter_context(MemcachedServer())),
            DataCentre(name="dc2", postgres=standby, memcached=servers.enter_context(MemcachedServer())),
        )
