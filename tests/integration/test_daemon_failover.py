"""Failover: the primary is lost, a standby takes over, and the daemon goes on where it decodes."""

import signal

import pytest

from leasecache import Cache, row
from leasecache.guard import Record, guard_key
from leasecache.lab import wait_until
from tests.fix_daemon import SLOT, WITHIN, World
from tests.integration.test_daemon_gate import Fragile

pytestmark = pytest.mark.parametrize("postgres_version", [18], indirect=True, ids=["pg18"])


def generation(world: World) -> int:
    """Return the generation of the only node."""
    found = world.store.look(guard_key("shop"))
    record = None if found is None else Record.from_bytes(found.value)
    assert record is not None
    return record.generation


def test_a_standby_is_promoted_and_followed(fragile_world: Fragile) -> None:
    """Guard: `_Past.differs`. The daemon's standby follows the new primary: nothing was lost, nothing is emptied."""
    world = fragile_world("standby")
    world.write("insert into media values (1, 'first'), (2, 'other')")
    with world.primary.standby("heir") as heir, Cache.from_url(world.url, guard="daemon") as cache:

        @cache.cached("media:{x}", ttl=600, depends_on=row("media", x="id"))
        def get_media(x: int) -> str:
            return str(world.source.value("select title from media where id = %s", x, dbname=world.database))

        world.daemon.start().streaming()
        for x in (1, 2):
            wait_until(lambda x=x: get_media.lookup(x).state == "fresh", WITHIN, world.daemon.log())  # type: ignore[misc]
        before = generation(world)
        heir.catch_up()
        world.source.catch_up()
        world.primary.kill()
        heir.promote()
        world.source.follow(heir)
        heir.query("update media set title = 'second' where id = 1", dbname=world.database)
        wait_until(lambda: get_media(1) == "second", WITHIN, f"the write on the heir; {world.daemon.log()}")
        assert (get_media.lookup(2).state, generation(world)) == ("fresh", before)
        assert world.daemon.get("/readyz") == (200, "ready\n")


def test_the_standby_of_the_daemon_becomes_the_primary(fragile_world: Fragile) -> None:
    """The stream goes on over a promotion of its own node, with the gate of a primary."""
    world = fragile_world("standby")
    world.write("insert into media values (1, 'first')")
    with Cache.from_url(world.url, guard="daemon") as cache:

        @cache.cached("media:{x}", ttl=600, depends_on=row("media", x="id"))
        def get_media(x: int) -> str:
            return str(world.source.value("select title from media where id = %s", x, dbname=world.database))

        world.daemon.start().streaming()
        wait_until(lambda: get_media.lookup(1).state == "fresh", WITHIN, world.daemon.log())
        world.source.catch_up()
        world.primary.kill()
        world.source.promote()
        for title in ("second", "third"):
            world.source.query("update media set title = %s where id = 1", title, dbname=world.database)
            wait_until(lambda title=title: get_media(1) == title, WITHIN, f"{title}; {world.daemon.log()}")  # type: ignore[misc]
        wait_until(lambda: get_media.lookup(1).state == "fresh", WITHIN, world.daemon.log())


@pytest.mark.parametrize("ended", [False, True])
def test_a_slot_whose_log_is_gone(fragile_world: Fragile, ended: bool) -> None:
    """A daemon that was stopped, or gone, for so long that Postgres gave up its log makes up for what was not seen."""
    world = fragile_world("primary")
    world.write("insert into media values (1, 'first')")
    world.primary.configure(max_slot_wal_keep_size="1MB")
    with Cache.from_url(world.url, guard="daemon") as cache:

        @cache.cached("media:{x}", ttl=600, depends_on=row("media", x="id"))
        def get_media(x: int) -> str:
            return str(world.primary.value("select title from media where id = %s", x, dbname=world.database))

        daemon = world.daemon.start().streaming()
        wait_until(lambda: get_media.lookup(1).state == "fresh", WITHIN, daemon.log())
        before = generation(world)
        daemon.process.send_signal(signal.SIGTERM if ended else signal.SIGSTOP)
        if ended:
            assert daemon.process.wait(WITHIN) == 0
        try:
            world.write("update media set title = 'unseen' where id = 1")

            def lost() -> bool:
                world.write("select pg_logical_emit_message(false, 'filler', repeat('x', 1000000)), pg_switch_wal()")
                world.write("checkpoint")
                state = "select wal_status from pg_replication_slots where slot_name = %s"
                return bool(world.primary.value(state, SLOT, dbname=world.database) == "lost")

            wait_until(lost, WITHIN, "the end of the slot's log")
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        if ended:
            daemon.start()
        wait_until(lambda: get_media(1) == "unseen", WITHIN, f"the change that nobody has sent; {daemon.log()}")
        wait_until(lambda: "event=gap-recovered" in daemon.log(), WITHIN, "recovery")
        wait_until(lambda: get_media.lookup(1).state == "fresh", WITHIN, daemon.log())
        assert (get_media(1), generation(world) != before) == ("unseen", True)


def test_the_source_can_be_stopped_while_w_is_held(fragile_world: Fragile) -> None:
    """Guard: `Follower._leave`. A server that stops waits for its walsenders; one whose W is held leaves it."""
    world = fragile_world("standby")
    daemon = world.daemon.start().streaming()
    world.memcached.pause()
    world.write("insert into media values (1, 'first')")
    wait_until(lambda: daemon.metric("pending_keys") > 0, WITHIN, "a key that nobody acknowledges")
    world.source.stop()
    world.memcached.resume()
    world.source.start()
    world.catch_up()
    world.await_confirmed(world.written())
