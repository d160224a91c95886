"""A database in two shards, each with a daemon of its own, in front of one cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from leasecache import Cache, row
from leasecache.lab import wait_until
from tests.fix_daemon import PREPARE, ROLE, SLOT, WITHIN, DaemonProcess, World

OTHER = "leasecache_other"  # the second shard's slot, and its database
TTL = 3  # s


class Shards:
    """Media with even numbers are in the world's database, those with odd ones in another of the same server."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.other = f"{world.database}_odd"
        world.primary.query(f"create database {self.other}", dbname="postgres")
        for statement in PREPARE:
            world.primary.query(statement, dbname=self.other)
        self.slot = f"{OTHER}_{world.database}"
        world.primary.create_logical_slot(self.slot, dbname=self.other)
        dsn = world.primary.dsn(self.other, user=ROLE)
        directory.mkdir()
        self.daemons = world.daemon, DaemonProcess(directory, dsn, world.url, slot=self.slot)
        for daemon in self.daemons:
            guard = f'[guard]\nttl = {TTL}\nslots = ["{SLOT}", "{self.slot}"]\n'
            daemon.config.write_text(daemon.config.read_text() + guard)
        self.cache = Cache.from_url(world.url, guard="daemon")

        @self.cache.cached("media:{x}", ttl=600, depends_on=row("media", x="id"))
        def get_media(x: int) -> str:
            return str(world.primary.value("select title from media where id = %s", x, dbname=self.shard(x)))

        self.get_media = get_media

    def shard(self, x: int) -> str:
        """Return the database of a medium."""
        return self.other if x % 2 else self.world.database

    def write(self, x: int, title: str) -> None:
        """Write a medium, in its shard."""
        statement = "insert into media values (%s, %s) on conflict (id) do update set title = excluded.title"
        self.world.primary.query(statement, x, title, dbname=self.shard(x))

    def await_states(self, state: str) -> None:
        """Wait until the values of both shards come from there."""
        logs = [daemon.log() for daemon in self.daemons]
        wait_until(lambda: {self.get_media.lookup(x).state for x in (1, 2)} == {state}, WITHIN, f"{state}; {logs}")

    def close(self) -> None:
        """End it."""
        self.cache.close()
        self.daemons[1].kill()
        self.world.daemon.kill()
        self.world.primary.drop_logical_slots(self.other)
        self.world.primary.query(f"drop database {self.other} with (force)", dbname="postgres")


@pytest.fixture
def shards(primary_world: World, tmp_path: Path) -> Iterator[Shards]:
    """Two shards, whose daemons are not started yet."""
    made = Shards(primary_world, tmp_path / "odd")
    yield made
    made.close()


def test_nodes_are_believed_while_every_shard_is_followed(shards: Shards) -> None:
    """Guard: `_vouched_rules`. One daemon alone vouches for nothing; when one dies, nothing is believed."""
    for x in (1, 2):
        shards.write(x, "first")
    shards.daemons[0].start().streaming()
    assert {shards.get_media.lookup(x).state for x in (1, 2)} == {"uncached"}
    shards.daemons[1].start().streaming()
    shards.await_states("fresh")
    for x in (1, 2):
        shards.write(x, "second")
    wait_until(lambda: [shards.get_media(x) for x in (1, 2)] == ["second", "second"], WITHIN, "both writes")
    shards.await_states("fresh")
    shards.daemons[1].kill()
    shards.await_states("uncached")
    shards.write(1, "third")
    assert shards.get_media(1) == "third"
    shards.daemons[1].start().streaming()
    shards.await_states("fresh")
    assert [shards.get_media(x) for x in (1, 2)] == ["third", "second"]
