"""The stream of changes: how fast it is read to its end, what that costs, and how late a key is invalid."""

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from leasecache.errors import LeasecacheError
from leasecache.lab import MemcachedServer, PostgresServer, wait_until
from leasecache.lab.install import postgres_programs
from leasecache.rules import Rule, RuleSet
from loadtests.bench.row import Effort, Outcome, Row, Tick
from loadtests.bench.slices import missing
from loadtests.bench.stream_reader import PUBLICATION

TIME, CPU = "time per row", "CPU per row"  # the figures of P8
P50, P50_REST, P99 = "p50", "p50 without the gate", "p99"  # the figures of P9
VERSION = 18
WITHIN = 120.0  # s for one reading
LEAST_ROUNDS = 3
PER_TRANSACTION = 10_000  # rows of a large one
RATE = 2_000  # transactions per s
_PREPARE = (
    "create table media (id bigint primary key, title text)",
    f"create publication {PUBLICATION} for table media",
    """create procedure single(first bigint, last bigint) language plpgsql as $$
    begin for i in first..last loop insert into media values (i, 'title ' || i); commit; end loop; end $$""",
)
_RULE = Rule(
    function="get_media",
    template="media:{media_id}",
    kinds={"media_id": "int"},
    schema="public",
    table="media",
    fields={"media_id": "id"},
)
_MARK = "bench_mark"  # the slot that others are copied from


class BrokenError(LeasecacheError):
    """A side did not read the stream to its end."""


Read = Callable[["Stage", str, str], dict[str, float]]  # from a slot to a position → s, CPU s


class Stage:
    """A primary with a table and a publication, and a memcached."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._made = 0

    def __enter__(self) -> "Stage":
        self.source = self._stack.enter_context(PostgresServer(VERSION))
        self.memcached = self._stack.enter_context(MemcachedServer("-t", "1"))
        self.directory = Path(self._stack.enter_context(TemporaryDirectory()))
        for statement in _PREPARE:
            self.source.query(statement)
        self.source.create_logical_slot(_MARK)
        rules = RuleSet(namespace="bench", rules=(_RULE,)).to_json()
        (self.directory / "rules.json").write_text(json.dumps(rules), encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def slot(self) -> str:
        """Return a new slot that stands where all of them begin."""
        self._made += 1
        name = f"bench_{self._made}"
        self.source.query(f"select pg_copy_logical_replication_slot('{_MARK}', '{name}')")
        return name

    def drop(self, slot: str) -> None:
        """Drop a slot once nobody reads it."""
        free = f"select not active from pg_replication_slots where slot_name = '{slot}'"
        wait_until(lambda: self.source.value(free), WITHIN, f"end of reading {slot}")
        self.source.query(f"select pg_drop_replication_slot('{slot}')")

    def configuration(self, slot: str) -> Path:
        """Write what a daemon is to do with a slot."""
        path = self.directory / f"{slot}.toml"
        path.write_text(
            f'[source]\ndsn = "{self.source.dsn()}"\nslot = "{slot}"\npublication = "{PUBLICATION}"\n'
            f'[cache]\nurl = "{self.memcached.url}?namespace=bench&guard=daemon"\n[rules]\nfile = "rules.json"\n',
            encoding="utf-8",
        )
        return path

    def program(self, side: str, slot: str) -> "Reading":
        """Start a side as a process of its own."""
        more = {"daemon": [str(self.configuration(slot))], "asking": [self.memcached.address]}.get(side, [])
        return Reading(["-m", "loadtests.bench.stream_reader", side, self.source.dsn(), slot, *more])


class Reading:
    """A process that reads the stream until it is told where to end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._said = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            _, errors = self._process.communicate(timeout=WITHIN)
            lines = errors.strip().splitlines() or ["it ended without a word"]
            error = ImportError if "ModuleNotFoundError" in lines[-1] else BrokenError
            raise error(lines[-1])
        return line

    def end(self, position: str) -> dict[str, float]:
        """Let it read up to a position; return how it went."""
        assert self._process.stdin is not None
        print(position, file=self._process.stdin, flush=True)
        found: dict[str, float] = json.loads(self._line())
        self._process.communicate(timeout=WITHIN)
        return found

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()


def pg_recvlogical(stage: Stage, slot: str, end: str) -> dict[str, float]:
    """Read with Postgres's own program into /dev/null."""
    program = str(postgres_programs(VERSION) / "pg_recvlogical")
    options = ["-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}", "-f", "/dev/null"]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [program, "-d", stage.source.dsn(), "-S", slot, "--start", "--endpos", end, *options]
    subprocess.run(command, check=True, timeout=WITHIN, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu": cpu}


def program(side: str, stage: Stage, slot: str, end: str) -> dict[str, float]:
    """Read with one of our programs."""
    return stage.program(side, slot).end(end)


floor, ours, psycopg2 = pg_recvlogical, partial(program, "daemon"), partial(program, "psycopg2")


@dataclass(frozen=True, kw_only=True)
class Draining:
    """How a row about rows per second is measured: written first, then read by each side from a slot of its own."""

    rows: int
    single: bool = False  # a transaction for each row

    def __call__(self, row: Row, effort: Effort, tick: Tick) -> Outcome:
        """Let the sides take turns; times are in µs per row, which is also s per million rows."""
        outcome = Outcome(samples={figure.name: {} for figure in row.figures})
        count = self.rows // 20 if effort.quick else self.rows
        with Stage() as stage:
            self._write(stage, count)
            end = stage.source.current_lsn()

            def sample(read: Read) -> dict[str, float]:
                slot = stage.slot()
                seen = read(stage, slot, end)
                stage.drop(slot)
                return {TIME: seen["seconds"] / count * 1e6, CPU: seen["cpu"] / count * 1e6}

            _take_turns(row, effort, tick, sample, outcome)
        return outcome

    def _write(self, stage: Stage, count: int) -> None:
        with stage.source.connect() as connection:
            connection.execute("set synchronous_commit = off")
            if self.single:
                connection.execute(f"call single(1, {count})")
                return
            insert = "insert into media select i, 'title ' || i from generate_series(%s::bigint, %s::bigint) i"
            for first in range(1, count + 1, PER_TRANSACTION):
                connection.execute(insert, [first, min(first + PER_TRANSACTION - 1, count)])


class Following:
    """How a row about delay is measured: written at a fixed rate while a side follows."""

    def __call__(self, row: Row, effort: Effort, tick: Tick) -> Outcome:
        """Let the sides take turns; times are in ms."""
        outcome = Outcome(samples={figure.name: {} for figure in row.figures})
        seconds = 0.5 if effort.quick else 3.0
        with Stage() as stage:
            stage.source.query("insert into media select i, 'title' from generate_series(1, 10000) i")

            def sample(named: Callable[[], str]) -> dict[str, float]:
                slot, side = "bench_follow", named()
                stage.source.create_logical_slot(slot)
                reading = stage.program(side, slot)
                try:
                    _write_steadily(stage, seconds, effort.seed)
                    seen = reading.end(stage.source.current_lsn())
                finally:
                    reading.kill()
                    stage.drop(slot)
                p50, gate = seen["latency p50"] * 1e3, seen.get("gate p50", 0.0) * 1e3
                return {P50: p50, P50_REST: p50 - gate, P99: seen["latency p99"] * 1e3}

            _take_turns(row, effort, tick, sample, outcome)
        return outcome


def _write_steadily(stage: Stage, seconds: float, seed: int) -> None:
    chance = random.Random(seed)
    with stage.source.connect() as connection:
        began = time.perf_counter()
        for number in range(int(seconds * RATE)):
            connection.execute("update media set title = %s where id = %s", [str(number), chance.randint(1, 10_000)])
            ahead = began + number / RATE - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)


def _take_turns(
    row: Row, effort: Effort, tick: Tick, sample: Callable[[Any], dict[str, float]], outcome: Outcome
) -> None:
    began, rounds, least = time.monotonic(), 0, 1 if effort.quick else LEAST_ROUNDS
    order, sides = random.Random(effort.seed), list(row.sides)
    while rounds < least or time.monotonic() < began + effort.seconds:
        order.shuffle(sides)
        for side in sides:
            if side.name in outcome.missing:
                continue
            try:
                for figure, value in sample(side.open).items():
                    outcome.samples[figure].setdefault(side.name, []).append(value)
            except (ImportError, LeasecacheError, subprocess.SubprocessError) as error:
                outcome.missing[side.name] = missing(error)
                for samples in outcome.samples.values():
                    samples.pop(side.name, None)
        rounds += 1
        tick(min(rounds / least, (time.monotonic() - began) / effort.seconds, 1))
