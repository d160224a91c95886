"""A real daemon between real servers, under load, while all of them are killed, stopped, cut off and started again.

The oracle needs no clock. A writer notes for each version of a row a position of the log behind its commit; whoever
reads looks first how far the slot has been acknowledged. A guarded hit must have the last version before that.
"""

import bisect
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from leasecache import Cache, NodeError, row
from leasecache.errors import LeasecacheError
from leasecache.invalidation.lsn import parse_lsn
from leasecache.lab import MemcachedServer, PostgresServer, TcpProxy, wait_until
from tests.fix_daemon import SLOT, DaemonProcess, rule

ROWS = 12
READERS = 3
GUARD_TTL = 3  # s
HEALED_WITHIN = 60.0  # s
SOURCES = ("primary", "standby")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a storm is made of."""

    seconds: float = 300.0
    seed: int = 0
    source: str = "primary"
    most: float = 20.0  # s that one fault lasts


@dataclass
class Report:
    """What came of a storm."""

    seed: int
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    log: str = ""

    def story(self) -> str:
        """Tell what was seen, and the end of the daemon's log."""
        return "\n".join([f"seed {self.seed}: {self.counts}, {self.faults}", *self.violations, self.log[-4000:]])


class Versions:
    """The versions of one row, each with a position of the log behind its commit."""

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._versions: list[int] = []

    def note(self, position: int, version: int) -> None:
        """Add a version; positions that come out of order are taken for later ones."""
        self._versions.append(max([version, *self._versions[-1:]]))
        self._positions.append(max([position, *self._positions[-1:]]))

    def due(self, position: int) -> int:
        """Return the last version that ends at `position` or before."""
        place = bisect.bisect_right(self._positions, position)
        return self._versions[place - 1] if place else 0


class Storm:
    """One run: servers, the daemon with whoever starts it again, an application, and the faults."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.report = Report(options.seed)
        self.over = threading.Event()
        self._random = random.Random(options.seed)
        self._lock = threading.Lock()
        self._published = 0  # W as the slot last had it
        self._versions = [Versions() for _ in range(ROWS)]
        self._stack = ExitStack()

    def run(self) -> Report:
        """Run until time is over or a promise is broken, then look at everything."""
        began = time.monotonic()
        with self._stack:
            self._set_up()
            jobs = [self._keep_alive, self._watch, self._write, *[self._read] * READERS]
            threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]
            for thread in threads:
                thread.start()
            wait_until(lambda: self.report.counts["fresh"] > 50 or self.report.violations, 60, f"hits; {self.log()}")
            self._disturb(time.monotonic() + self.options.seconds)
            self.over.set()
            for thread in threads[1:]:
                thread.join(30)
            if not self.report.violations:
                self._compare()
            self.report.log = self.log()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _set_up(self) -> None:
        enter = self._stack.enter_context
        directory = Path(enter(tempfile.TemporaryDirectory()))
        # A server that is told to stop waits so long for a walsender whose client is cut off.
        self.primary = enter(PostgresServer(18, settings={"wal_sender_timeout": "10s"}))
        self.source = self.primary if self.options.source == "primary" else enter(self.primary.standby())
        self.primary.query("create table media (id int primary key, version int not null)")
        self.primary.query(f"insert into media select i, 0 from generate_series(0, {ROWS - 1}) i")
        self.primary.query("create publication leasecache for table media")
        if self.source is not self.primary:
            self.source.catch_up()
        self.source.create_logical_slot(SLOT)
        self.nodes = [enter(MemcachedServer()) for _ in range(2)]
        self.proxies = [enter(TcpProxy(node.port)) for node in self.nodes]
        self.wire = enter(TcpProxy(self.source.port))  # between daemon and source
        where = ",".join(proxy.address for proxy in self.proxies)
        url = f"memcached://{where}?namespace=shop&timeout=0.3&connect_timeout=0.3&guard=daemon"
        dsn = f"postgresql://postgres@{self.wire.address}/app"
        self.daemon = DaemonProcess(directory, dsn, url, [rule("media", "id")])
        with self.daemon.config.open("a") as config:
            config.write(f'[guard]\nttl = {GUARD_TTL}\n[journal]\ndirectory = "{directory}"\n')
        self._stack.callback(self.daemon.kill)
        self.daemon.start().streaming()
        self._cache = enter(Cache.from_url(url))
        self._get = self._function()

    def _function(self) -> Any:
        local = threading.local()

        @self._cache.cached("media:{x}", ttl=3600, wait_for=2, depends_on=row("media", x="id"))
        def get_media(x: int) -> int:
            connection = getattr(local, "connection", None)
            if connection is None or connection.broken:
                connection = local.connection = self.source.connect(connect_timeout=2)
                self._stack.callback(connection.close)
            ((version,),) = connection.execute("select version from media where id = %s", [x]).fetchall()
            time.sleep(0.02 * random.random())  # old versions are always on their way
            return int(version)

        return get_media

    def log(self) -> str:
        """Return the daemon's log since it was last started."""
        return self.daemon.log()

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._accuse(f"{job.__name__} raised {type(error).__name__}: {error}")
            raise

    def _accuse(self, fault: str) -> None:
        self.report.violations.append(fault)
        self.over.set()

    def _keep_alive(self) -> None:
        """Start the daemon whenever it has ended, as its service manager does."""
        while not self.over.wait(0.02):
            if self.daemon.exited:
                self.report.counts["starts"] += 1
                self.daemon.start()

    def _watch(self) -> None:
        """Note how far the slot has been acknowledged; what has been published once stays true."""
        sql = f"select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{SLOT}'"
        while not self.over.is_set():
            with suppress(psycopg.Error, OSError), self.source.connect(connect_timeout=2) as connection:
                while not self.over.wait(0.003):
                    found = connection.execute(sql).fetchone()
                    if found is not None and found[0]:
                        self._published = max(self._published, parse_lsn(found[0]))

    def _write(self) -> None:
        """Update rows, and note where in the log that was."""
        update = "update media set version = version + 1 where id = any(%s) returning id, version"
        while not self.over.is_set():
            with suppress(psycopg.Error, OSError), self.primary.connect(connect_timeout=2) as connection:
                while not self.over.wait(random.choice([0.002, 0.02, 0.1]) * random.random()):
                    rows = random.sample(range(ROWS), random.choice([1, 1, 3]))
                    found = connection.execute(update, [sorted(rows)]).fetchall()
                    ((position,),) = connection.execute("select pg_current_wal_insert_lsn()::text").fetchall()
                    self.report.counts["writes"] += len(found)
                    for number, version in found:
                        self._versions[number].note(parse_lsn(position), version)

    def _read(self) -> None:
        """Read rows, and judge every hit."""
        while not self.over.is_set():
            number = random.randrange(ROWS)
            due = self._versions[number].due(self._published)
            try:
                entry = self._get.lookup(number)
            except (psycopg.Error, LeasecacheError, OSError) as error:
                self._count(type(error).__name__)
                self.over.wait(0.01)
                continue
            self._count(entry.state)
            if entry.state == "fresh" and entry.value < due:
                self._accuse(f"row {number} is {entry.value}, and {due} had been acknowledged when the read began")
            self.over.wait(0.001)

    def _count(self, what: str) -> None:
        with self._lock:
            self.report.counts[what] += 1

    def _compare(self) -> None:
        """Once everything is acknowledged, every row reads as in the database, and every node is vouched for."""
        with self._alive():
            written = parse_lsn(self.primary.value("select pg_current_wal_lsn()::text"))
            sql = f"select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{SLOT}'"
            wait_until(lambda: parse_lsn(self.source.value(sql)) >= written, HEALED_WITHIN, f"W; {self.log()}")
            truth = dict(self.primary.query("select id, version from media"))
            for number in range(ROWS):
                wait_until(lambda x=number: self._settled(x, truth[x]), HEALED_WITHIN, f"row {number}; {self.log()}")

    def _settled(self, number: int, version: int) -> bool:
        try:
            entry = self._get.lookup(number)
        except NodeError:
            return False
        if entry.state == "fresh" and entry.value != version:
            self._accuse(f"in the end row {number} is {entry.value} in the cache, and {version} in the database")
        return bool(entry.state == "fresh")

    @contextmanager
    def _alive(self) -> Iterator[None]:
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(0.05):
                if self.daemon.exited:
                    self.daemon.start()

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _disturb(self, until: float) -> None:
        faults: list[Callable[[], None]] = [
            *[self.kill_daemon] * 4,
            self.end_walsender,
            self.restart_primary,
            self.cut_source,
            self.stall_source,
            self.restart_node,
            self.stop_node,
            self.cut_node,
            self.lose_replies,
        ]
        if self.source is not self.primary:
            faults.append(self.restart_standby)
        while time.monotonic() < until and not self.over.is_set():
            fault = self._random.choice(faults) if self.report.faults else self.kill_daemon  # which none is without
            self.report.faults[fault.__name__] += 1
            fault()
            self.over.wait(self._random.choice([0.05, 0.5, 1.5]) * self._random.random())

    def _last(self) -> None:
        self.over.wait(self.options.most * self._random.random() ** 3)

    def kill_daemon(self) -> None:
        """End the daemon by SIGKILL."""
        with suppress(ProcessLookupError):
            self.daemon.process.kill()

    def end_walsender(self) -> None:
        """Terminate the server's process that streams."""
        with suppress(psycopg.Error):
            self.source.query("select pg_terminate_backend(active_pid) from pg_replication_slots where active")

    def restart_primary(self) -> None:
        """Kill the primary and start it again."""
        self.primary.kill()
        self.primary.start()

    def restart_standby(self) -> None:
        """Restart the standby."""
        self.source.restart()

    def cut_source(self) -> None:
        """Reset the connections between daemon and source."""
        self.wire.reset()

    def stall_source(self) -> None:
        """Hold back what passes between daemon and source, or let it vanish and end the connections."""
        if self._random.random() < 0.5:
            self.wire.stall()
        else:
            self.wire.drop(self._random.choice(["requests", "replies"]))  # type: ignore[arg-type]
        self._last()
        self.wire.reset()
        self.wire.flow()

    def restart_node(self) -> None:
        """Kill a memcached and start it again, empty."""
        node = self._random.choice(self.nodes)
        node.kill()
        self._last()
        node.start()

    def stop_node(self) -> None:
        """Stop a memcached by SIGSTOP: it takes requests and answers nothing."""
        node = self._random.choice(self.nodes)
        node.pause()
        self._last()
        node.resume()

    def cut_node(self) -> None:
        """Hold back what passes between everybody and a memcached, then reset it."""
        proxy = self._random.choice(self.proxies)
        proxy.stall()
        self._last()
        proxy.reset()
        proxy.flow()

    def lose_replies(self) -> None:
        """Let a memcached do what it is told, and nobody hear of it."""
        proxy = self._random.choice(self.proxies)
        proxy.drop("replies")
        self._last()
        proxy.reset()
        proxy.flow()


def storm(options: Options) -> Report:
    """Run one storm."""
    return Storm(options).run()
