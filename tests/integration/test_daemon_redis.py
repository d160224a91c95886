"""The daemon and its clients on a Redis as operators run it: TLS, a user of few rights, its data on disk."""

from collections.abc import Iterator

import pytest
import trustme

from leasecache import Cache, row
from leasecache.guard import guard_key
from leasecache.lab import RedisCluster, RedisServer, free_port, wait_until
from tests.fix_daemon import WITHIN, World, run_to_exit
from tests.fix_redis import holds

USER = ("app", "on", ">secret", "~*shop:*", "+@all", "-@dangerous", "+info")
GUARD = guard_key("shop").decode()


class SecuredRedis(RedisServer):
    """A Redis that talks TLS on a second port, lets one user in, and logs every write."""

    def __init__(self) -> None:
        super().__init__()
        self.tls_port = free_port()

    def prepare(self) -> None:
        authority = trustme.CA()
        self._write("ca", authority.cert_pem.bytes())
        self._write("key", authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())

    def _write(self, name: str, text: bytes) -> None:
        path = self.data / f"{name}.pem"
        path.write_bytes(text)
        path.chmod(0o644)

    def command(self) -> list[str]:
        files = {"key-file": "key", "cert-file": "key", "ca-cert-file": "ca"}
        tls = [part for name, file in files.items() for part in (f"--tls-{name}", str(self.data / f"{file}.pem"))]
        port = ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
        return [*super().command(), *tls, *port, "--appendonly", "yes", "--appendfsync", "always", "--user", *USER]

    @property
    def url(self) -> str:
        return f"rediss://app:secret@localhost:{self.tls_port}/0?ca={self.data}/ca.pem&namespace=shop"


@pytest.fixture
def secured() -> Iterator[SecuredRedis]:
    """Such a Redis."""
    with SecuredRedis() as server:
        yield server


def test_restart_from_disk_serves_nothing_that_changed_meanwhile(primary_world: World, secured: SecuredRedis) -> None:
    """Restarted from its log within the record's life, Redis has the record and old values back: none is served.

    Guard: the record names another run of the server. Once the daemon vouches for the new one there are hits again.
    """
    world = primary_world
    config = world.daemon.config
    config.write_text(config.read_text().replace(world.url, secured.url))
    world.write("insert into media values (1, 'first')")
    world.daemon.start().streaming()
    with Cache.from_url(secured.url, guard="daemon") as cache:

        @cache.cached("media:{x}", ttl=600, depends_on=row("media", x="id"))
        def get_media(x: int) -> str:
            return str(world.primary.value("select title from media where id = %s", x, dbname=world.database))

        def fresh() -> bool:
            return get_media.lookup(1).state == "fresh"

        wait_until(fresh, WITHIN, f"a hit; {world.daemon.log()}")
        secured.kill()
        world.write("update media set title = 'second'")
        secured.start()
        wait_until(lambda: holds(secured, GUARD), WITHIN, "the record, when all is loaded")
        assert get_media(1) == "second"
        wait_until(fresh, WITHIN, f"a hit again; {world.daemon.log()}")
        assert get_media(1) == "second"


def test_cluster_is_invalidated_without_a_guard(primary_world: World, shared_redis_cluster: RedisCluster) -> None:
    """A Redis cluster has no guard record: the daemon invalidates what unguarded clients use."""
    world, url = primary_world, f"{shared_redis_cluster.url}?namespace=shop"
    config = world.daemon.config
    config.write_text(config.read_text().replace(world.url, url))
    world.write("insert into media values (1, 'first')")
    world.daemon.start().streaming()
    with Cache.from_url(url, guard="none") as cache:

        @cache.cached("media:{x}", ttl=600)
        def get_media(x: int) -> str:
            return str(world.primary.value("select title from media where id = %s", x, dbname=world.database))

        assert get_media(1) == "first"
        world.write("update media set title = 'second'")
        wait_until(lambda: get_media(1) == "second", WITHIN, f"the invalidation; {world.daemon.log()}")
        get_media.invalidate(1)
    world.await_confirmed(world.written())


def test_cluster_beside_guarded_caches_is_refused(primary_world: World) -> None:
    """What would be missed on the cluster when a generation is given up is said before anything is connected."""
    config = primary_world.daemon.config
    config.write_text(
        config.read_text().replace("[cache]\n", '[cache]\nmore = ["redis+cluster://127.0.0.1:7000?namespace=shop"]\n')
    )
    code, _, errors = run_to_exit(["-m", "leasecache.invalidation", "--config", str(config)])
    assert code == 2
    assert "has no guard, so it cannot stand beside" in errors


def test_records_that_never_run_out_are_refused_with_sentinels(primary_world: World) -> None:
    """After a failover W waits until the former primary's record has run out: one without an end would hold it."""
    config = primary_world.daemon.config
    url = "redis+sentinel://127.0.0.1:7000/app?namespace=shop"
    config.write_text(config.read_text().replace(primary_world.url, url) + "[guard]\nttl = 0\n")
    code, _, errors = run_to_exit(["-m", "leasecache.invalidation", "--config", str(config)])
    assert code == 2
    assert "guard.ttl" in errors
