"""Further readers: the gate waits for all of them, and whatever one of them reads again in the past does not stay."""

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from leasecache.guard import Record, guard_key, wire_key
from leasecache.lab import PostgresServer, wait_until
from leasecache.lease import Lease, Stored
from tests.fix_daemon import ROLE, SLOT, WITHIN, DaemonProcess, World
from tests.fix_servers import PostgresPair

HOUR = 3600.0  # s
LOOKS = 50  # while a change is not visible, far more than the daemon needs to do wrong


@dataclass(frozen=True)
class Trio:
    """A primary and two standbys; tests may change settings of the standbys and break them, and put them right."""

    primary: PostgresServer
    near: PostgresServer
    far: PostgresServer


@pytest.fixture(scope="module")
def trio(postgres_version: int) -> Iterator[Trio]:
    """Three nodes of this module's own."""
    with PostgresServer(postgres_version) as primary, primary.standby("near") as near, primary.standby("far") as far:
        yield Trio(primary, near, far)


class Site(World):
    """A world in a database of its own on a trio, that knows the guard record of its cache node."""

    def __init__(self, where: str, trio: Trio, database: str, directory: Path) -> None:
        super().__init__(where, PostgresPair(trio.primary, trio.near), database, directory)
        self.trio = trio
        self.node: Any = self.store.nodes[0]
        self._directory = directory

    def configure(self, *readers: PostgresServer, **source: Any) -> DaemonProcess:
        """Give the daemon readers, and perhaps another gate or source."""
        dsn, *others = (node.dsn(self.database, user=ROLE) for node in (self.source, *readers))
        lines = {"dsn": dsn, "readers": others, **source}
        self.daemon = DaemonProcess(self._directory, url=self.url, **lines)
        return self.daemon

    def catch_up(self) -> None:
        """Wait until both standbys show what has been written."""
        for node in (self.primary, self.standby):
            if node.upstream is not None:
                node.catch_up()

    def record(self) -> Record | None:
        """Return the guard record."""
        found = self.node.look(guard_key("shop"))
        return None if found is None else Record.from_bytes(found.value)

    def generation(self) -> int:
        """Return the node's generation, waiting for the record."""
        wait_until(lambda: self.record() is not None, WITHIN, f"a guard record; {self.daemon.log()}")
        record = self.record()
        assert record is not None
        return record.generation

    def fill_guarded(self, key: str, value: bytes) -> bytes:
        """Store a value as a guarded function does, and return the key on the wire."""
        wired = wire_key(self.generation(), f"shop:{key}".encode())
        lease = self.node.lease_get(wired, 10)
        assert isinstance(lease, Lease), lease
        assert isinstance(self.node.lease_set(lease, 1, value, 3600), Stored)
        return wired

    def settle(self) -> None:
        """Wait until all that was written has been invalidated."""
        self.await_confirmed(self.written())

    def cut(self, node: PostgresServer) -> None:
        """End the daemon's connections to a node."""
        node.query("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", ROLE)

    def title(self, node: "PostgresServer | psycopg.Connection[Any]") -> str | None:
        """Return the title of media 1 on a node."""
        if isinstance(node, PostgresServer):
            with node.connect(self.database) as connection:
                return self.title(connection)
        row = node.execute("select title from media where id = 1").fetchone()
        return None if row is None else row[0]


MakeSite = Callable[[str], Site]


@pytest.fixture
def site(trio: Trio, tmp_path: Path) -> Iterator[MakeSite]:
    """Make a site whose slot is at the "primary" or the "standby" (the near one)."""
    database = f"test_{uuid.uuid4().hex[:12]}"
    trio.primary.query(f"create database {database}", dbname="postgres")
    for node in (trio.near, trio.far):
        node.catch_up()
    with ExitStack() as stack:
        for node in (trio.primary, trio.near):
            stack.callback(node.drop_logical_slots, database)

        def make(where: str) -> Site:
            made = Site(where, trio, database, tmp_path)
            stack.callback(made.close)
            made.write("insert into media values (1, 'old')")
            for node in (trio.near, trio.far):
                node.catch_up()
            return made

        yield make


def late(site: Site, node: PostgresServer, title: str) -> None:
    """Let a node replay late, change media 1, and see its key go when the node shows that, and not before."""
    site.settle()
    site.fill("media:1")
    seen = 0
    with ExitStack() as stack:
        stack.callback(node.delay_replay, 0)
        node.delay_replay(HOUR)
        site.write("update media set title = %s where id = 1", title)
        held = site.written()
        reading = stack.enter_context(node.connect(site.database))
        while site.cached("media:1"):
            passed = site.confirmed() >= held
            if site.title(reading) != title:
                assert not passed, "acknowledged before it was visible"
                seen += 1
                if seen == LOOKS:
                    node.delay_replay(0)
        assert site.title(reading) == title, "invalidated before it was visible"
    site.await_confirmed(held)


def test_fills_read_from_two_replicas(site: MakeSite) -> None:
    """Decoding at the primary, a key goes when the slowest reader shows the change, not when the primary does.

    Guard: a standby shows a transaction when it has replayed its end, and a view what all readers show.
    """
    world = site("primary")
    near, far = world.trio.near, world.trio.far
    world.configure(near, far, gate="replay").start().streaming()
    log = world.daemon.log()
    assert f"reader={world.primary.address} gate=none why=" in log
    assert f"reader={near.address} gate=replay why=" in log
    late(world, far, "new")


def test_a_standby_source_and_a_further_reader(site: MakeSite) -> None:
    """A standby that replays late sends late; where fills read from another one, too, that one counts as well.

    Guard: the view shows what all readers show.
    """
    world = site("standby")
    world.configure(world.trio.far).start().streaming()
    late(world, world.trio.near, "new")
    late(world, world.trio.far, "newer")


def test_a_reader_that_is_away(site: MakeSite) -> None:
    """A reader that is away holds the gate, is named, and is found again without a new conversation with the source.

    If it has run all the time no cache is emptied; if it restarted, all are. Guards: every reader must answer; the
    checkpointer tells one run of a node from the next.
    """
    world = site("primary")
    far = world.trio.far
    world.configure(far, gate="replay").start().streaming()
    before = world.generation()
    world.cut(far)
    wait_until(lambda: "event=reader-back" in world.daemon.log(), WITHIN, "the reader is back")
    wait_until(lambda: world.daemon.get("/readyz")[0] == 200, WITHIN, f"ready; {world.daemon.log()}")
    assert world.generation() == before
    assert world.daemon.metric("reader_rewinds_total") == 0
    world.settle()
    world.fill("media:1")
    with ExitStack() as back:
        back.callback(far.start)
        far.stop()
        world.write("update media set title = 'new' where id = 1")
        held = world.written()
        wait_until(lambda: world.daemon.metric("held_transactions") == 1, WITHIN, "a held transaction")
        status, text = world.daemon.get("/readyz")
        assert (status, f"reader {far.address}" in text) == (503, True), text
        assert world.cached("media:1"), "invalidated although nobody knows what the reader shows"
        assert world.confirmed() < held
    world.await_gone("media:1")
    world.await_confirmed(held)
    wait_until(lambda: world.daemon.get("/readyz")[0] == 200, WITHIN, f"ready again; {world.daemon.log()}")
    assert world.daemon.metric("reconnects_total") == 0
    assert world.generation() != before


@pytest.mark.parametrize("where", ["primary", "standby"])
def test_a_standby_that_goes_back_in_time(site: MakeSite, where: str) -> None:
    """A standby that crashes while writes stream shows an old state for a while; what is read then is void soon after.

    Guard: on a new incarnation nothing is believed until a new generation, which waits for all that was released.
    """
    world = site(where)
    near = world.trio.near
    if where == "primary":
        world.configure(near, gate="replay")
    world.daemon.start().streaming()
    for node in (world.primary, near):
        node.query("checkpoint")  # from where it recovers: the old state
        near.catch_up()
    world.write("update media set title = 'new' where id = 1")
    world.settle()
    before = world.generation()
    with ExitStack() as delayed:
        delayed.enter_context(writes_streaming(world))
        delayed.callback(near.delay_replay, 0)
        near.delay_replay(HOUR)  # makes what takes tens of ms last until it has been looked at
        crash(near)
        wait_until(lambda: reads(near, world) == "old", WITHIN, "an old state")
        world.fill_guarded("media:1", b"old")
        assert reads(near, world) == "old"
        near.delay_replay(0)
        wait_until(lambda: world.generation() != before, 60, f"a new generation; {world.daemon.log()}")
        assert reads(near, world) == "new", "a new generation may be filled with an old state"
    after = world.generation()
    assert world.node.look(wire_key(after, b"shop:media:1")) is None
    assert "event=reader-rewound" in world.daemon.log()
    world.write("update media set title = 'newer' where id = 1")
    world.settle()
    assert world.generation() == after


@contextmanager
def writes_streaming(site: Site) -> Iterator[None]:
    """Change other rows all the time, and more than once."""
    over = threading.Event()

    def write() -> None:
        with site.primary.connect(site.database) as writing:
            while not over.wait(0.005):
                writing.execute(
                    "insert into media values (2 + random() * 9, 'x') on conflict (id) do update set title = ''"
                )

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            yield
        finally:
            over.set()
            writing.result()


def crash(node: PostgresServer) -> None:
    """End one server process by SIGKILL, as a lack of memory does: the node ends all others and recovers."""
    with suppress(psycopg.Error), node.connect() as victim:
        pid: Any = victim.execute("select pg_backend_pid()").fetchone()
        os.kill(pid[0], signal.SIGKILL)
        wait_until(lambda: victim.execute("select 1") is None, WITHIN, "the end of a process")


def reads(node: PostgresServer, world: Site) -> str | None:
    """Return what a reader reads on a node, None while it lets nobody in."""
    try:
        return world.title(node)
    except psycopg.Error:
        return None


def test_a_reader_that_is_promoted(site: MakeSite) -> None:
    """A reader that becomes the primary, followed by the source, is judged by its snapshots from then on.

    Guard: each answer says whether its node is in recovery. The last test of this module: it breaks the trio.
    """
    world = site("standby")
    primary, near, far = world.trio.primary, world.trio.near, world.trio.far
    world.configure(far).start().streaming()
    world.settle()
    with ExitStack() as restored:
        restored.callback(primary.start)
        primary.kill()
        far.promote()
        near.follow(far)
        world.fill("media:1")
        restored.callback(far.synchronise)
        far.synchronise("nobody")
        update = "update media set title = 'new' where id = 1"
        with ThreadPoolExecutor(1) as pool, ExitStack() as released:
            released.callback(far.synchronise)
            waiting = pool.submit(far.query, update, dbname=world.database)
            wait_until(lambda: world.title(near) == "new", WITHIN, "replay of the near standby")
            wait_until(lambda: world.daemon.metric("held_transactions") == 1, WITHIN, "a held transaction")
            assert world.title(far) == "old"
            assert world.cached("media:1"), "invalidated before it was visible"
            released.close()
            waiting.result(WITHIN)
        world.await_gone("media:1")
        assert f"reader={far.address} gate=snapshot was=replay" in world.daemon.log()
    assert world.daemon.terminate() == 0
    world.source = primary
    primary.create_logical_slot(SLOT, dbname=world.database)
    world.configure(far).start()
    assert world.daemon.process.wait(WITHIN) == 2
    assert "primary beside the source" in world.daemon.log()
