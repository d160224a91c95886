"""Visibility: no key is invalidated before a new snapshot of the readers' node shows the change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from leasecache.lab import wait_until
from tests.fix_daemon import WITHIN, World

Fragile = Callable[[str], World]


def shown(world: World, title: str) -> bool:
    """Whether the source shows media 1 with this title."""
    rows = world.source.query("select title from media where id = 1", dbname=world.database)
    return rows == [(title,)]


def test_a_primary_that_waits_for_a_silent_standby(fragile_world: Fragile) -> None:
    """A commit is streamed while it is not visible yet; the snapshot gate holds until it is, W with it.

    Guard: on a primary the xid counts, not the position in the log.
    """
    world = fragile_world("primary")
    world.write("insert into media values (1, 'old')")
    world.daemon.start().streaming()
    world.await_confirmed(world.written())
    world.fill("media:1", "media:2")
    world.primary.synchronise(world.standby.name)
    world.standby.pause()
    with ThreadPoolExecutor(1) as pool, ExitStack() as resumed:
        resumed.callback(world.standby.resume)
        waiting = pool.submit(world.write, "update media set title = 'new' where id = 1")
        wait_until(lambda: world.daemon.metric("held_transactions") == 1, WITHIN, "a held transaction")
        held = world.written()
        world.write("set synchronous_commit = local; insert into media values (2, 'later')")
        world.await_gone("media:2")  # visible before the earlier one, which goes on waiting
        assert world.cached("media:1"), "invalidated before it was visible"
        assert shown(world, "old")
        assert world.confirmed() < held
        resumed.close()
        waiting.result(WITHIN)
    world.await_gone("media:1")
    world.await_confirmed(world.written())


def test_a_standby_that_is_promoted(fragile_world: Fragile) -> None:
    """A standby that becomes a primary under a running stream is gated by snapshots from then on."""
    world = fragile_world("standby")
    world.daemon.start().streaming()
    assert "gate=standby" in world.daemon.log()
    world.primary.kill()
    world.source.promote()
    world.fill("media:1")
    world.source.synchronise("nobody")
    insert = "insert into media values (1, 'a')"
    with ThreadPoolExecutor(1) as pool, ExitStack() as released:
        released.callback(world.source.synchronise)
        waiting = pool.submit(world.source.query, insert, dbname=world.database)
        wait_until(lambda: world.daemon.metric("held_transactions") == 1, WITHIN, "a held transaction")
        assert world.cached("media:1"), "invalidated before it was visible"
        released.close()
        waiting.result(WITHIN)
    world.await_gone("media:1")
    assert "gate=snapshot was=standby" in world.daemon.log()


def test_the_source_restarts(fragile_world: Fragile) -> None:
    """A primary that crashes and comes back is followed again, and nothing is lost."""
    world = fragile_world("primary")
    world.daemon.start().streaming()
    world.fill("media:1", "media:2")
    world.primary.kill()
    wait_until(lambda: world.daemon.get("/readyz")[0] == 503, WITHIN, "not ready")
    world.primary.restart()
    world.write("insert into media values (1, 'a')")
    world.await_gone("media:1")
    assert world.daemon.get("/readyz")[0] == 200
    assert world.cached("media:2")
