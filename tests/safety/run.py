"""A whole run: servers, processes, faults, and the report."""

import json
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from leasecache.lab import MemcachedServer, RedisServer, Server, TcpProxy
from tests.safety.faults import Faults
from tests.safety.history import Event, timeline
from tests.safety.scene import Setup
from tests.safety.worker import work

ROWS = 12
STORES: dict[str, Callable[[], Server]] = {
    "memcached": MemcachedServer,
    "recent": lambda: MemcachedServer(recent=True),  # takes CAS numbers of ours
    "redis": RedisServer,
}
CALM = 6.0  # s at most before the first fault
END_WITHIN = 60  # s that processes have to finish their calls

Progress = Callable[[float, int, int, Counter[str]], None]  # s, operations, invalidations, faults


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is made of."""

    seconds: float = 300.0
    seed: int = 0
    processes: int = 3
    nodes: int = 2
    store: str = "memcached"
    least: int = 0  # operations; a busy machine takes longer for them, up to ten times as long
    mutant: str | None = None

    @property
    def calm(self) -> float:
        """Return the s before the first fault."""
        return min(CALM, self.seconds / 3)


@dataclass
class Report:
    """What came of a run."""

    seed: int
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Take in what a process has left."""
        left = json.loads(path.read_text())
        self.counts.update(left["counts"])
        self.violations += left["violations"]
        self.events += [Event(*event) for event in left["events"]]

    def story(self) -> str:
        """Tell the first violation and the history of its row."""
        if not self.violations:
            return f"seed {self.seed}: no violation"
        first = min(self.violations, key=lambda seen: seen["ended"])
        lines = timeline(self.events, first["row"], first["ended"])
        return "\n".join([f"seed {self.seed}: row {first['row']}, seen by {first['who']}: {first['fault']}", *lines])


def run(options: Options, progress: Progress | None = None) -> Report:
    """Run for some time, or until the first violation."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(STORES[options.store]()) for _ in range(options.nodes)]
        # one connection through the proxy is one to the server, so that a restart ends both
        proxies = [stack.enter_context(TcpProxy(server.port)) for server in servers[options.nodes > 1 :]]
        addresses = [server.address for server in servers[: options.nodes - len(proxies)]]
        addresses += [proxy.address for proxy in proxies]
        scheme = "redis" if options.store == "redis" else "memcached"
        url = f"{scheme}://{','.join(addresses)}?timeout=0.4&connect_timeout=0.4"
        setup = Setup(directory, url, options.seed, ROWS, options.processes + 1, options.mutant)
        report = Report(options.seed)
        crew = Crew(setup, options.processes)
        began = time.monotonic()
        faults = Faults(servers, proxies, crew.replace_victim, seed=options.seed, calm=options.calm)
        with crew, faults:
            for passed, operations, invalidations in crew.watch(options.seconds, options.least):
                if progress is not None:
                    progress(passed, operations, invalidations, faults.counts)
        report.seconds = time.monotonic() - began
        report.faults = faults.counts
        report.events += faults.history.events()
        report.violations += crew.deserters()
        for path in directory.glob("worker-*.json"):
            report.add(path)
    return report


class Crew:
    """The processes of a run: some that read and write, and a victim that only reads and is killed now and then."""

    def __init__(self, setup: Setup, processes: int) -> None:
        self._setup = setup
        self._ledger = setup.ledger()
        self._lock = threading.Lock()
        self._victims = 0
        self._victim = processes
        self._processes: dict[int, BaseProcess] = {
            number: self._process(number, str(number), list(range(number, setup.rows, processes)))
            for number in range(processes)
        }
        self._processes[self._victim] = self._process(self._victim, "victim", [])

    def __enter__(self) -> "Crew":
        for process in self._processes.values():
            process.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ledger.stop()
        with self._lock:
            for process in self._processes.values():
                process.join(END_WITHIN)

    def watch(self, seconds: float, least: int) -> Iterator[tuple[float, int, int]]:
        """Yield s, operations and invalidations so far, until time is over, a violation is seen or a process ends."""
        began, operations = time.monotonic(), 0
        while not self._ledger.stopped and self._complete:
            passed = time.monotonic() - began
            if passed >= (seconds if operations >= least else 10 * seconds):
                return
            time.sleep(0.1)
            operations, invalidations = self._ledger.counts()
            yield passed, operations, invalidations

    @property
    def _complete(self) -> bool:
        with self._lock:
            return all(process.is_alive() for process in self._processes.values())

    def replace_victim(self) -> None:
        """Kill the process that holds leases and promises nothing else, and start another."""
        with self._lock:
            victim = self._processes[self._victim]
            victim.kill()
            victim.join()
            self._victims += 1
            successor = self._process(self._victim, f"victim-{self._victims}", [])
            if not self._ledger.stopped:
                successor.start()
                self._processes[self._victim] = successor

    def deserters(self) -> list[dict[str, Any]]:
        """Return a violation for each process that did not end well."""
        return [
            {"row": 0, "ended": time.monotonic_ns(), "who": process.name, "fault": f"ended with {process.exitcode}"}
            for number, process in self._processes.items()
            if process.exitcode and number != self._victim
        ]

    def _process(self, number: int, name: str, rows: list[int]) -> BaseProcess:
        context = multiprocessing.get_context("spawn")
        return context.Process(target=work, args=(self._setup, number, name, rows), name=f"worker {name}", daemon=True)
