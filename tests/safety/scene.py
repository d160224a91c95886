"""What one process of a run works with: a cache, functions over the rows, and the oracle that sees every answer."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.safety import mutants
from tests.safety.history import Event, History, write
from tests.safety.ledger import Ledger, Mark
from tests.safety.oracle import Oracle

STALE_FOR = 2.0  # s, of the rows that may be stale; with 1 s no memcached can stretch it, for its clock ticks once


@dataclass(frozen=True)
class Setup:
    """What the processes of a run have in common."""

    directory: Path
    url: str
    seed: int
    rows: int
    workers: int
    mutant: str | None = None

    def ledger(self) -> Ledger:
        """Map the run's database."""
        return Ledger(self.directory / "ledger", self.rows, self.workers)

    def stale_for(self) -> dict[int, float]:
        """Return by row how long it may be stale, in s: every other row for a while, the others never."""
        return {row: STALE_FOR if row % 2 else 0.0 for row in range(self.rows)}


class Scene:
    """A process's part in a run."""

    def __init__(self, setup: Setup, name: str) -> None:
        mutants.apply(setup.mutant)
        self.name = name
        self.setup = setup
        self.ledger = setup.ledger()
        self.stale_for = setup.stale_for()
        self.oracle = Oracle(self.ledger, self.stale_for)
        self.history = History(name)
        self.counts: Counter[str] = Counter()
        self.violations: list[dict[str, Any]] = []
        self._local = threading.local()

    @property
    def random(self) -> random.Random:
        """The dice of the calling thread: the same for the same seed, process and thread."""
        if not hasattr(self._local, "random"):
            self._local.random = random.Random(f"{self.setup.seed} {self.name} {threading.current_thread().name}")
        dice: random.Random = self._local.random
        return dice

    def judge(self, mark: Mark, what: str, fault: str | None) -> None:
        """Keep what the oracle said about an answer, and end the run at the first fault."""
        self.history.note(mark.row, "read", mark.began, f"{what}: {fault or 'as promised'}")
        if fault is not None:
            self.accuse(mark, f"{what}: {fault}")

    def accuse(self, mark: Mark, fault: str) -> None:
        """Report a violation and end the run."""
        seen = {"row": mark.row, "ended": time.monotonic_ns(), "fault": fault, "who": self.name}
        self.violations.append(seen)
        self.ledger.stop()

    def leave_report(self, name: str) -> None:
        """Write down what was counted and seen."""
        events: list[Event] = self.history.events() if self.ledger.stopped else []
        report = {"counts": self.counts, "violations": self.violations, "events": events}
        write(self.setup.directory / f"worker-{name}", report)
