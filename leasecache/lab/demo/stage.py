"""Two data centres with their data, caches and daemons, ready for the tour."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leasecache.cache import Cache
from leasecache.lab.daemon import DaemonServer
from leasecache.lab.demo.photos import Database, Photos, declare, declare_likes, seed
from leasecache.lab.servers import ServerError
from leasecache.lab.topology import DataCentre, two_data_centres

RULES = "leasecache.lab.demo.photos:rules_cache"
NAMESPACE = "photos"
GUARD_TTL = 3  # s that a cache is believed without news from its daemon
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One data centre: its servers, its daemon, and the application as its web servers run it."""

    servers: DataCentre
    daemon: DaemonServer
    cache_url: str
    app: Photos

    @property
    def guard(self) -> dict[str, Any]:
        """Return what the daemon says of the guard record in the site's cache: "state", "generation" and more."""
        guard: dict[str, Any] = self.daemon.status()["nodes"][0]["guard"] or {"state": "absent"}
        return guard


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Both data centres; writes go to the primary in `dc1`, `dc2` reads its standby."""

    dc1: Site
    dc2: Site

    @property
    def primary(self) -> Database:
        """The database that takes writes."""
        return self.dc1.app.database


@contextmanager
def two_sites(version: int, progress: Progress) -> Iterator[Stage]:
    """Start everything; `version` is the major version of Postgres, `progress` is told what is being done."""
    with ExitStack() as stack:
        dc1, dc2 = stack.enter_context(two_data_centres(version))
        with dc1.postgres.connect(autocommit=True) as connection:
            seed(connection, progress)
            declare_likes().create(connection, progress=lambda done, of: progress("counting likes", done, of))
        dc2.postgres.catch_up()
        yield Stage(dc1=_open_site(stack, dc1), dc2=_open_site(stack, dc2))


def _open_site(stack: ExitStack, servers: DataCentre) -> Site:
    url = f"{servers.memcached.url}?namespace={NAMESPACE}&guard=daemon"
    dsn = servers.postgres.dsn()
    daemon = DaemonServer(
        f"daemon-{servers.name}",
        dsn=dsn,
        slot=f"leasecache_{servers.name}",
        cache_url=url,
        rules=[RULES],
        guard_ttl=GUARD_TTL,
    )
    _set_up(daemon)
    cache = stack.enter_context(Cache.from_url(url))
    database = stack.enter_context(closing(Database(dsn)))
    return Site(servers=servers, daemon=stack.enter_context(daemon), cache_url=url, app=declare(cache, database))


def _set_up(daemon: DaemonServer) -> None:
    """Create publication, replica identities and slot, as an operator does."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "leasecache.toml")
        path.write_text(daemon.configuration, encoding="utf-8")
        command = [sys.executable, "-m", "leasecache", "setup", "--config", str(path), "--apply"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise ServerError(f"leasecache setup for {daemon.name} failed: {done.stderr.strip()}")
