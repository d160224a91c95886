"""A database that is written to as fast as it goes, and the daemon's memory meanwhile: python -m loadtests.flood.

In the middle third the cache node answers late, so that the daemon must slow the stream down instead of collecting it.
Exit codes: 0 the memory stayed flat and everything was acknowledged in the end, 1 not so, 2 wrong use.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from leasecache.lab import MemcachedServer, PostgresServer, TcpProxy, wait_until
from leasecache.lab.daemon import DaemonServer
from leasecache.rules import Rule, RuleSet
from loadtests.options import number

SLOT = "leasecache_flood"
ROWS = 50_000  # in the table
AT_ONCE = 500  # rows of a transaction
LATE = 0.005  # s before each byte of the node's replies in the middle third
SPARE = 1.3  # times the memory of the first third that the last one may take
DRAIN = 900.0  # s
BARS = "▁▂▃▄▅▆▇█"
WRITE = "update media set title = %s where id between %s and %s"
PREPARE = (
    "create table media (id int primary key, title text) with (fillfactor = 40)",
    f"insert into media select x, 'first' from generate_series(1, {ROWS}) as x",
    "create publication leasecache for table media",
)

RULE = Rule(
    function="get_media",
    template="media:{media_id}",
    kinds={"media_id": "int"},
    schema="public",
    table="media",
    fields={"media_id": "id"},
)


class _Daemon(DaemonServer):
    """A daemon that reads its rules from a file."""

    @property
    def configuration(self) -> str:
        path = self.data / "rules.json"
        path.write_text(json.dumps(RuleSet(namespace="flood", rules=(RULE,)).to_json()), encoding="utf-8")
        return super().configuration.replace("import = []", f"file = {json.dumps(str(path))}")


@dataclass
class Seen:
    """A sample every second."""

    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MiB resident
    pending: list[int] = field(default_factory=list)  # keys in memory
    lag: list[int] = field(default_factory=list)  # bytes that the source has sent and W has not passed
    rows: int = 0
    drained: bool = False  # everything was acknowledged in the end

    def flat(self) -> bool:
        """Tell whether the last third took about as much memory as the first one."""
        third = max(1, len(self.memory) // 3)
        return max(self.memory[-third:]) <= SPARE * max(self.memory[:third])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flood and return the exit code."""
    parser = argparse.ArgumentParser(prog="flood", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=number(6, 3600), default=60.0, help="how long (60)")
    parser.add_argument("--writers", type=number(1, 32, int), default=2, help="connections that write (2)")
    parser.add_argument("--json", action="store_true", help="print every sample as JSON")
    parsed = parser.parse_args(arguments)
    seen = run(parsed.seconds, int(parsed.writers))
    if parsed.json:
        print(json.dumps(asdict(seen) | {"flat": seen.flat()}))  # noqa: T201
    else:
        Console().print(table(seen))
    return 0 if seen.flat() and seen.drained else 1


def run(seconds: float, writers: int) -> Seen:
    """Write for so long, and return what the daemon took meanwhile."""
    with ExitStack() as stack:
        primary = stack.enter_context(PostgresServer(18))
        proxy = stack.enter_context(TcpProxy(stack.enter_context(MemcachedServer()).port))
        for statement in PREPARE:
            primary.query(statement)
        primary.create_logical_slot(SLOT)
        url = f"memcached://{proxy.address}?namespace=flood&timeout=10"
        daemon = stack.enter_context(_Daemon("daemon", dsn=primary.dsn(), slot=SLOT, cache_url=url, rules=()))
        with _writing(primary, writers):
            seen = _watch(daemon, proxy, seconds)
        written = primary.value("select pg_current_wal_lsn() - '0/0'::pg_lsn")
        with suppress(TimeoutError):
            wait_until(lambda: daemon.acknowledged() >= written, DRAIN, "acknowledgement of everything")
            seen.drained = True
        seen.rows = int(daemon.status()["tables"][0]["rows"]["total"])
    return seen


def table(seen: Seen) -> Table:
    """Draw the samples."""
    drawn = Table("", "first", "most", "last", "over the time")
    for name, sample in (("resident, MiB", seen.memory), ("keys in memory", seen.pending), ("lag, bytes", seen.lag)):
        figures = [f"{value:,.0f}" for value in (sample[0], max(sample), sample[-1])]
        drawn.add_row(name, *figures, _bars(sample))
    memory = "flat" if seen.flat() else "NOT flat"
    rest = "all" if seen.drained else "NOT all"
    drawn.caption = f"{seen.rows:,} rows in {seen.seconds[-1]:.0f} s; memory {memory}, {rest} acknowledged"
    return drawn


def _bars(sample: Sequence[float], width: int = 40) -> str:
    step, most = max(1, len(sample) // width), max(sample) or 1
    return "".join(BARS[round(max(sample[i : i + step]) / most * 7)] for i in range(0, len(sample), step))


@contextmanager
def _writing(primary: PostgresServer, writers: int) -> Iterator[None]:
    over = threading.Event()
    threads = [threading.Thread(target=_write, args=(primary, over, n)) for n in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _write(primary: PostgresServer, over: threading.Event, number: int) -> None:
    first = 1 + number * AT_ONCE
    with primary.connect() as connection:
        connection.execute("set synchronous_commit = off")
        while not over.is_set():
            connection.execute(WRITE, (str(time.time()), first, first + AT_ONCE - 1))
            first = (first + 7 * AT_ONCE) % (ROWS - AT_ONCE) + 1


def _watch(daemon: DaemonServer, proxy: TcpProxy, seconds: float) -> Seen:
    seen, began = Seen(), time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("writing", total=seconds)
        while (past := time.monotonic() - began) < seconds:
            if seconds / 3 < past < seconds * 2 / 3:
                proxy.drip(LATE, "replies")
            else:
                proxy.flow("replies")
            status = daemon.status()
            seen.seconds.append(round(past, 1))
            seen.memory.append(_resident(daemon.pid))
            seen.pending.append(int(status["pending_keys"]))
            seen.lag.append(int(status["lag_bytes"]))
            progress.update(bar, completed=past)
            time.sleep(1)
    return seen


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main())
