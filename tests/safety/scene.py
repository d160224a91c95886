"""What one process of a run works with: a cache, functions over the rows, and the oracle that sees every answer."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leasecache import Cache
from leasecache.lease import Stored
from tests.safety import mutants
from tests.safety.history import Event, History, write
from tests.safety.ledger import Ledger, Mark
from tests.safety.oracle import Oracle, Value

STALE_FOR = 2.0  # s, of the rows that may be stale; with 1 s no memcached can stretch it, for its clock ticks once
TTL = 6.0  # s
LEASE_FOR = 1.0  # s
AHEAD = 2.0  # s
HOT = 0  # the row that half of the readers want
STORMY = 1  # the row that is invalidated so often that hardly any load of it is in time
SLOW = 2  # the row whose loads outlast a server's restart
SLOWEST = {STORMY: 0.2, SLOW: 0.6}  # s


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


class LoadFailed(Exception):
    """What the loader raises now and then."""


class Scene:
    """A process's part in a run."""

    def __init__(self, setup: Setup, name: str) -> None:
        mutants.apply(setup.mutant)
        self.name = name
        self.ledger = setup.ledger()
        self.stale_for = setup.stale_for()
        self.oracle = Oracle(self.ledger, self.stale_for)
        self.history = History(name)
        self.counts: Counter[str] = Counter()
        self.violations: list[dict[str, Any]] = []
        self.cache = Cache.from_url(setup.url)
        self._report = setup.directory / f"worker-{name}"
        self._local = threading.local()
        self._seed = setup.seed
        common: dict[str, Any] = {"ttl": TTL, "refresh_ahead": AHEAD, "lease_for": LEASE_FOR, "wait_for": 0.5}
        hard = self.cache.cached("hard:{row}", **common)(self._hard)
        soft = self.cache.cached("soft:{row}", stale_for=STALE_FOR, **common)(self._soft)
        self.functions: dict[int, Any] = {row: soft if row % 2 else hard for row in range(setup.rows)}
        self._observe_fills()

    @property
    def random(self) -> random.Random:
        """The dice of the calling thread: the same for the same seed, process and thread."""
        if not hasattr(self._local, "random"):
            self._local.random = random.Random(f"{self._seed} {self.name} {threading.current_thread().name}")
        dice: random.Random = self._local.random
        return dice

    def key(self, row: int) -> bytes:
        """Return the cache key of a row."""
        key: bytes = self.functions[row].key(row)
        return key

    def load(self, row: int) -> bytes:
        """Read a row as a database does: the version that is there now arrives a little later."""
        began, version = time.monotonic_ns(), self.ledger.version(row)
        time.sleep(self._delay(row))
        self.history.note(row, "load", began, f"version {version}")
        if self.random.random() < 0.01:
            raise LoadFailed
        filling = 40_000 if self.random.random() < 0.02 else self.random.randrange(100)
        return Value.encode(row, version, filling)

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

    def close(self) -> None:
        """Close the cache and leave the report."""
        self.cache.close()
        self.leave_report(self._report)

    def leave_report(self, path: Path) -> None:
        """Write down what was counted and seen."""
        events: list[Event] = self.history.events() if self.ledger.stopped else []
        write(path, {"counts": self.counts, "violations": self.violations, "events": events})

    def _hard(self, row: int) -> bytes:
        return self.load(row)

    def _soft(self, row: int) -> bytes:
        return self.load(row)

    def _delay(self, row: int) -> float:
        """Choose how long an answer of the database is on its way, in s."""
        chance, scale = self.random.random(), self.random.random()
        if row in SLOWEST:
            return SLOWEST[row] * (0.5 + scale / 2)
        if chance < 0.7:
            return scale * 0.003
        return scale * (0.06 if chance < 0.98 else 1.5 * LEASE_FOR)

    def _observe_fills(self) -> None:
        """Note every store that is tried, with the bytes it would store."""
        store: Any = self.cache.driver().store
        lease_set = store.lease_set
        rows = {self.key(row): row for row in self.functions}

        def observed(lease: Any, flags: int, body: bytes, ttl: float) -> Any:
            began, outcome = time.monotonic_ns(), "failed"
            try:
                answer = lease_set(lease, flags, body, ttl)
                outcome = "stored" if isinstance(answer, Stored) else answer.reason
                return answer
            finally:
                detail = f"{body[:12]!r} under {tuple(lease.token or ())}: {outcome}"
                self.history.note(rows[lease.key], "fill", began, detail)
                self.counts["stored" if outcome == "stored" else "refused"] += 1

        store.lease_set = observed
