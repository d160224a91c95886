"""What becomes of guarded clients and of the slot when daemons end, take over, or have lost changes."""

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from leasecache import Cache, row
from leasecache.guard import Record, guard_key
from leasecache.invalidation.triggers import triggers_ddl
from leasecache.lab import wait_until
from tests.fix_daemon import ROLE, SLOT, WITHIN, DaemonProcess, World

TAKEOVER = 5.0  # s within which a spare follows, on a machine that has time for it
TAKEOVERS = 3  # of which one must have had a machine with time
GUARD = guard_key("shop")


class Shop:
    """An application whose cache is guarded, reading its rows from the primary."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cache = Cache.from_url(world.url, guard="daemon")

        @self.cache.cached("media:{x}", ttl=600, depends_on=row("media", x="id"))
        def get_media(x: int) -> str:
            return str(world.primary.value("select title from media where id = %s", x, dbname=world.database))

        self.get_media = get_media

    def state(self, x: int = 1) -> str:
        """Return where the value of a call comes from."""
        return self.get_media.lookup(x).state

    def await_state(self, state: str, x: int = 1) -> None:
        """Wait until a call's value comes from there."""
        wait_until(lambda: self.state(x) == state, WITHIN, f"{state}; {self.world.daemon.log()}")

    def await_value(self, value: str, x: int = 1) -> None:
        """Wait until a call brings this value."""
        wait_until(lambda: self.get_media(x) == value, WITHIN, f"{value}; {self.world.daemon.log()}")

    def record(self) -> Record | None:
        """Return the guard record of the only node."""
        found = self.world.store.look(GUARD)
        return None if found is None else Record.from_bytes(found.value)

    def generation(self) -> int | None:
        """Return the generation that the record names, None when there is none."""
        record = self.record()
        return None if record is None else record.generation


@pytest.fixture
def shop(primary_world: World) -> Iterator[Shop]:
    """An application with one row, and a daemon that streams."""
    primary_world.write("insert into media values (1, 'first')")
    made = Shop(primary_world)
    yield made
    made.cache.close()


def more(daemon: DaemonProcess, text: str) -> DaemonProcess:
    """Add to a daemon's configuration."""
    daemon.config.write_text(daemon.config.read_text() + text)
    return daemon


def drop_slot(world: World) -> None:
    """Take the daemon's slot away, faster than it comes back to it."""

    def dropped() -> bool:
        holder = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = %s"
        try:
            world.write(holder, SLOT)
            world.write("select pg_drop_replication_slot(%s)", SLOT)
        except psycopg.errors.ObjectInUse:
            return False
        return True

    wait_until(dropped, WITHIN, "the slot's end")


def test_a_guarded_life(shop: Shop) -> None:
    """Nothing is cached before the daemon vouches, writes invalidate, and what the daemon left behind runs out."""
    assert (shop.state(), shop.get_media(1)) == ("uncached", "first")
    daemon = more(shop.world.daemon, "[guard]\nttl = 3\n").start().streaming()
    shop.await_state("fresh")
    shop.world.write("update media set title = 'second' where id = 1")
    shop.await_value("second")
    shop.await_state("fresh")
    generation = shop.generation()
    daemon.kill()
    shop.await_state("uncached")
    shop.world.write("update media set title = 'third' where id = 1")
    assert shop.get_media(1) == "third"
    daemon.start().streaming()
    shop.await_state("fresh")
    assert shop.get_media(1) == "third"
    assert shop.generation() != generation


def test_the_journal_keeps_the_generation(shop: Shop, tmp_path: Path) -> None:
    """A daemon that ends and begins again with its journal empties no cache, and has lost nothing in between."""
    daemon = more(shop.world.daemon, f'[journal]\ndirectory = "{tmp_path}"\n').start().streaming()
    shop.await_state("fresh")
    shop.world.write("insert into media values (2, 'other')")
    shop.world.await_confirmed(shop.world.written())  # its key has been told, and will not be told after the fill
    shop.await_state("fresh", 2)
    generation = shop.generation()
    for stop in (daemon.terminate, daemon.kill):
        stop()
        shop.world.write("update media set title = title || '!' where id = 1")
        daemon.start().streaming()
        shop.await_value("first!" if stop == daemon.terminate else "first!!")
        assert (shop.generation(), shop.state(2)) == (generation, "fresh")


@pytest.mark.parametrize("triggers", [True, False])
def test_a_publication_that_is_made_anew(shop: Shop, triggers: bool) -> None:
    """What was written while there was no publication cannot be sent; the daemon passes it, and goes on.

    Guard: `UndecodableError`. Up to 17 a stream from the old slot ends at these changes, again and again.
    """
    for statement in triggers_ddl(frozenset()) if triggers else ():
        shop.world.write(statement)
    more(shop.world.daemon, "[drift]\nevery = 0.2\n").start().streaming()
    shop.await_state("fresh")
    shop.world.write("drop publication leasecache")
    shop.world.write("update media set title = 'unsent' where id = 1")
    shop.world.write("create publication leasecache for table media, comments, tags")
    shop.await_value("unsent")
    shop.await_state("fresh")
    shop.world.write("update media set title = 'sent' where id = 1")
    shop.await_value("sent")


def test_what_became_of_tables_while_no_daemon_ran(shop: Shop, tmp_path: Path) -> None:
    """A daemon that begins again goes by what its journal has of the tables: the stream does not tell all of it.

    Guard: `stands_on`. Under another name rows change unseen, and all is as before when the daemon looks.
    """
    for statement in triggers_ddl(frozenset()):
        shop.world.write(statement)
    daemon = more(shop.world.daemon, f'[journal]\ndirectory = "{tmp_path}"\n').start().streaming()
    shop.await_state("fresh")
    assert daemon.terminate() == 0
    with shop.world.primary.connect(shop.world.database, autocommit=False) as connection:
        connection.execute("alter table media rename to apart")
        connection.execute("update apart set title = 'unseen'")
        connection.execute("alter table apart rename to media")
    daemon.start().streaming()
    shop.await_value("unseen")


def test_a_spare_takes_over(shop: Shop, tmp_path: Path) -> None:
    """A second daemon on the slot waits, says so, and follows within five seconds of the first one's death."""
    first = shop.world.daemon.start().streaming()
    (tmp_path / "spare").mkdir()
    spare = DaemonProcess(tmp_path / "spare", shop.world.source.dsn(shop.world.database, user=ROLE), shop.world.url)
    try:
        _stand_by(spare)
        status, body = spare.get("/readyz")
        assert (status, body.startswith("standing-by: ")) == (503, True)
        assert (spare.terminate(), "event=stopped drained=True" in spare.log()) == (0, True)
        seconds: list[float] = []
        while not seconds or (min(seconds) > TAKEOVER and len(seconds) < TAKEOVERS):
            _stand_by(spare)
            shop.await_state("fresh")
            generation = shop.generation()
            died = time.monotonic()
            first.kill()
            spare.streaming()
            seconds.append(time.monotonic() - died)
            first, spare = spare, first
        assert min(seconds) < TAKEOVER
        shop.world.write("update media set title = 'second' where id = 1")
        shop.await_value("second")
        shop.await_state("fresh")
        assert shop.generation() != generation
        assert first.get("/readyz") == (200, "ready\n")
    finally:
        first.kill()
        spare.kill()


def _stand_by(spare: DaemonProcess) -> None:
    spare.start()
    wait_until(lambda: "event=standing-by" in spare.log(), WITHIN, "standing by")


def test_a_slot_that_is_gone(shop: Shop) -> None:
    """Changes that no slot has kept are made up for: a new slot, and new generations only behind it."""
    daemon = shop.world.daemon.start().streaming()
    shop.await_state("fresh")
    generation = shop.generation()
    drop_slot(shop.world)
    shop.world.write("update media set title = 'unseen' where id = 1")
    wait_until(lambda: shop.generation() not in (None, generation), WITHIN, f"a new generation; {daemon.log()}")
    assert ("event=gap" in daemon.log(), "event=gap-recovered" in daemon.log()) == (True, True)
    assert shop.get_media(1) == "unseen"
    shop.await_state("fresh")
    shop.world.write("update media set title = 'seen' where id = 1")
    shop.await_value("seen")
    assert daemon.get("/readyz") == (200, "ready\n")


def test_too_many_gaps(shop: Shop) -> None:
    """The fourth loss within an hour ends the daemon with a line that says so: somebody has to look."""
    daemon = shop.world.daemon.start().streaming()
    for _ in range(3):
        gaps = daemon.log().count("event=gap-recovered")
        drop_slot(shop.world)
        wait_until(lambda before=gaps: daemon.log().count("event=gap-recovered") > before, WITHIN, daemon.log())  # type: ignore[misc]
    drop_slot(shop.world)
    assert daemon.process.wait(WITHIN) == 1
    assert "lost 3 times within the hour" in daemon.log()


@pytest.mark.parametrize("noticed", ["by the clock", "in the log"])
def test_a_publication_that_loses_a_table(shop: Shop, noticed: str) -> None:
    """A function whose table is not sent is vouched for no more; when the table is back, nothing old is believed."""
    if noticed == "in the log":
        for statement in triggers_ddl(frozenset()):
            shop.world.write(statement)
    every = 0.2 if noticed == "by the clock" else 3600
    daemon = more(shop.world.daemon, f"[drift]\nevery = {every}\n").start().streaming()
    shop.await_state("fresh")
    generation = shop.generation()
    shop.world.write("alter publication leasecache drop table media")
    shop.await_state("uncached")
    shop.world.write("update media set title = 'unseen' where id = 1")
    assert shop.get_media(1) == "unseen"
    wait_until(lambda: daemon.get("/readyz")[0] == 503, WITHIN, "drift")
    assert "does not send this table" in daemon.get("/readyz")[1]
    shop.world.write("alter publication leasecache add table media")
    shop.await_state("fresh")
    assert (shop.get_media(1), shop.generation() != generation) == ("unseen", True)
    shop.world.write("update media set title = 'seen' where id = 1")
    shop.await_value("seen")
    wait_until(lambda: daemon.get("/readyz")[0] == 200, WITHIN, "ready")
