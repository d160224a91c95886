"""One side of the rows about the stream, as a process: reads a slot to a position, and says in JSON how it went.

`python -m loadtests.bench.stream_reader SIDE DSN SLOT [CONFIG | NODE]` writes "ready" once it streams, then reads a
position from its standard input, and ends when it is there.
"""

import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from leasecache.invalidation import launch
from leasecache.invalidation.gate import QUESTION
from leasecache.invalidation.lsn import parse_lsn
from leasecache.invalidation.source import Replication, connect
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.stream import POSTGRES_EPOCH
from loadtests.bench.spread import percentile

PUBLICATION = "leasecache"
FRAMES = 1000  # that the minimal reader takes at once
WAIT = 0.01  # s between two looks whether the end is known


class Progress:
    """How far the reading is, and what it cost from the beginning."""

    def __init__(self) -> None:
        self.latencies: list[float] = []  # s from a commit to what the side is about
        self.waits: list[float] = []  # s of these at the gate
        self._began = self._cpu = 0.0
        self._goal: int | None = None
        self.position = 0  # where the side is
        self.end: Callable[[], None] = lambda: None  # called when it is told to end where it is already

    def begin(self) -> None:
        """Note that the stream begins."""
        self._began, self._cpu = time.perf_counter(), _cpu()
        print("ready", flush=True)  # noqa: T201
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self._goal = parse_lsn(sys.stdin.readline().strip())
        if self.over(self.position):
            self.end()

    def over(self, position: int) -> bool:
        """Whether the end has been reached."""
        self.position = position
        return self._goal is not None and position >= self._goal

    def tell(self) -> None:
        """Say how it went."""
        seen = {"seconds": time.perf_counter() - self._began, "cpu": _cpu() - self._cpu}
        for name, sample in (("latency", self.latencies), ("gate", self.waits)):
            if sample:
                seen |= {f"{name} p50": percentile(sample, 0.5), f"{name} p99": percentile(sample, 0.99)}
        print(json.dumps(seen), flush=True)  # noqa: T201


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def minimal(progress: Progress, dsn: str, slot: str) -> None:
    """Read by libpq and note the time of each commit, nothing else."""
    replication = Replication(dsn)
    replication.start(slot, PUBLICATION)
    progress.begin()
    ready = select.poll()
    ready.register(replication.socket, select.POLLIN)
    position = 0
    while not progress.over(position):
        frames = replication.read(FRAMES)
        for frame in frames:
            if frame[25:26] == b"C":
                position, committed_at = struct.unpack_from("!QQ", frame, 35)
                progress.latencies.append(time.time() - POSTGRES_EPOCH - committed_at / 1e6)
            elif frame[:1] == b"k":
                position = max(position, int.from_bytes(frame[1:9], "big"))
        if not frames:
            ready.poll(WAIT * 1000)
    replication.close()


class Asking:
    """A reader that asks the gate's question once per commit and deletes a key then: the least that there is to do.

    It looks at no answer, knows no keys, and would neither notice a failure nor survive one.
    """

    def __init__(self, progress: Progress, dsn: str, slot: str, node: str) -> None:
        self._progress = progress
        self._replication = Replication(dsn)
        self._gate = connect(dsn).pgconn
        host, port = node.rsplit(":", 1)
        self._node = socket.create_connection((host, int(port)))
        self._node.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replication.start(slot, PUBLICATION)
        self._position = 0
        self._held: list[tuple[int, float, float]] = []  # ends, Unix s of commits, Unix s when they came
        self._asked, self._passed, self._sent = self._held[:], self._held[:], self._held[:]

    def run(self) -> None:
        """Read to the end."""
        self._progress.begin()
        steps = {
            self._replication.socket: self._receive,
            self._gate.socket: self._pass,
            self._node.fileno(): self._complete,
        }
        ready = select.poll()
        for descriptor in steps:
            ready.register(descriptor, select.POLLIN)
        while not self._progress.over(self._position):
            found = ready.poll(WAIT * 1000)
            now = time.time()
            for descriptor, _ in found:
                steps[descriptor](now)
            if self._held and not self._asked:
                self._asked, self._held = self._held, []
                self._gate.send_query(QUESTION)
            if self._passed and not self._sent:
                self._sent, self._passed = self._passed, []
                self._node.send(b"".join(b"md bench:media:%d q\r\n" % end for end, _, _ in self._sent) + b"mn\r\n")

    def _receive(self, now: float) -> None:
        for frame in self._replication.read(FRAMES):
            if frame[25:26] == b"C":
                end, committed_at = struct.unpack_from("!QQ", frame, 35)
                self._held.append((end, committed_at / 1e6 + POSTGRES_EPOCH, now))
            elif frame[:1] == b"k" and not (self._held or self._asked or self._passed or self._sent):
                self._position = max(self._position, int.from_bytes(frame[1:9], "big"))

    def _pass(self, now: float) -> None:
        self._gate.consume_input()
        if not self._gate.is_busy():
            while self._gate.get_result() is not None:
                pass
            self._progress.waits += [now - since for _, _, since in self._asked]
            self._passed, self._asked = self._passed + self._asked, []

    def _complete(self, now: float) -> None:
        if self._node.recv(1 << 16).endswith(b"MN\r\n"):
            self._progress.latencies += [time.time() - committed_at for _, committed_at, _ in self._sent]
            self._position, self._sent = self._sent[-1][0], []


def asking(progress: Progress, dsn: str, slot: str, node: str) -> None:
    """Read, ask and delete, nothing else."""
    Asking(progress, dsn, slot, node).run()


def psycopg2(progress: Progress, dsn: str, slot: str) -> None:
    """Read by psycopg2's loop over `read_message`, and do nothing."""
    factory = import_module("psycopg2.extras").LogicalReplicationConnection
    connection = import_module("psycopg2").connect(dsn, connection_factory=factory)
    cursor = connection.cursor()
    options = {"proto_version": "1", "publication_names": PUBLICATION}
    cursor.start_replication(slot_name=slot, decode=False, options=options)
    progress.begin()
    while not progress.over(cursor.wal_end):
        if cursor.read_message() is None:
            select.select([cursor], [], [], WAIT)
    connection.close()


class _Probe(Monitor):
    """A monitor that takes the time and ends the daemon in the end."""

    progress: Progress

    def connected(self, *args: Any, **fields: Any) -> None:
        super().connected(*args, **fields)
        self.progress.begin()

    def position(self, received: int, acknowledged: int, pending: int) -> None:
        super().position(received, acknowledged, pending)
        if self.progress.over(acknowledged):
            self.progress.end()

    def completed(self, committed_at: float) -> None:
        super().completed(committed_at)
        self.progress.latencies.append(time.time() - committed_at)

    def gate_passed(self, waited: float) -> None:
        super().gate_passed(waited)
        self.progress.waits.append(waited)


def daemon(progress: Progress, dsn: str, slot: str, config: str) -> None:
    """Run the daemon of a configuration, whose every key is acknowledged by its node."""
    _Probe.progress = progress
    progress.end = lambda: os.kill(os.getpid(), signal.SIGTERM)
    setattr(launch, "Monitor", _Probe)  # noqa: B010 - which is not the launch's to export
    launch.run_daemon(Path(config))


SIDES: dict[str, Callable[..., None]] = {
    "minimal": minimal,
    "asking": asking,
    "psycopg2": psycopg2,
    "daemon": daemon,
}


def main(arguments: Sequence[str]) -> None:
    """Run one side."""
    side, *rest = arguments
    progress = Progress()
    SIDES[side](progress, *rest)
    progress.tell()


if __name__ == "__main__":
    main(sys.argv[1:])
