"""Every way to read a row, chosen at random, each answer judged."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from leasecache import LeaseTimeout, NodeError
from leasecache.lease import Hit, Lease, Stale, Wait
from tests.safety.ledger import Mark
from tests.safety.scene import HOT, LEASE_FOR, SLOWEST, TTL, LoadFailed, Scene

FORKED_READS = 30
FORKED_FOR = 20  # s that a forked child has
BATCH = 4  # rows


class Reader:
    """Reads rows until the run is over."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._ways: dict[Callable[[int], None], int] = {
            self.call: 40,
            self.lookup: 25,
            self.batch: 10,
            self.lease: 15,
            self.peek: 5,
            self.refresh: 4,
            self.reconnect: 1,
        }

    def run(self) -> None:
        """Read as fast as answers come."""
        while not self._scene.ledger.stopped:
            self.step()

    def step(self) -> None:
        """Read one row in some way; expected failures are counted."""
        scene = self._scene
        [way] = scene.random.choices([*self._ways], [*self._ways.values()])
        row = scene.random.choice([HOT, scene.random.randrange(scene.ledger.rows)])
        scene.counts["operations"] += 1
        try:
            way(row)
        except (LoadFailed, LeaseTimeout, NodeError) as error:
            scene.counts[type(error).__name__] += 1
        except Exception as error:
            scene.accuse(scene.ledger.mark(row), f"{way.__name__} raised {type(error).__name__}: {error}")
            raise

    def call(self, row: int) -> None:
        """The plain call, whose hits take the short way."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        value = scene.functions[row](row)
        scene.judge(mark, "call", scene.oracle.fault(mark, value, stale=True))

    def lookup(self, row: int) -> None:
        """The call with provenance."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        entry = scene.functions[row].lookup(row)
        scene.counts[entry.state] += 1
        scene.judge(mark, entry.state, scene.oracle.entry(mark, entry))

    def batch(self, row: int) -> None:
        """Some rows at once."""
        scene = self._scene
        alike = [other for other in range(row % 2, scene.ledger.rows, 2) if other not in SLOWEST]
        rows = scene.random.sample(alike, min(BATCH, len(alike)))
        marks = [scene.ledger.mark(other) for other in rows]
        found = scene.functions[row].get_many(rows)
        for mark in marks:
            scene.judge(mark, "get_many", scene.oracle.fault(mark, found[mark.row], stale=True))

    def peek(self, row: int) -> None:
        """A look that takes no lease."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        entry = scene.functions[row].peek(row)
        if entry is not None:
            scene.judge(mark, f"peek {entry.state}", scene.oracle.entry(mark, entry))

    def refresh(self, row: int) -> None:
        """A load that has to begin now."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        value = scene.functions[row].refresh(row)
        scene.judge(mark, "refresh", scene.oracle.outdated(mark, value))

    def lease(self, row: int) -> None:
        """The low-level calls: fill, give back, forget or steal."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        answer = scene.cache.lease_get(scene.key(row), lease_for=LEASE_FOR)
        if isinstance(answer, (Hit, Stale)):
            stale = isinstance(answer, Stale)
            scene.judge(mark, type(answer).__name__, scene.oracle.fault(mark, answer.value, stale=stale))
        if isinstance(answer, (Stale, Wait)) and answer.token is not None and scene.random.random() < 0.2:
            answer = scene.cache.driver().store.steal(scene.key(row), answer.token, LEASE_FOR)
            scene.counts["stolen"] += 1
        if isinstance(answer, Lease):
            self._use(mark, answer)

    def reconnect(self, row: int) -> None:
        """Close every connection that is idle, now and then."""
        if self._scene.random.random() < 0.2:
            self._scene.cache.driver().store.close()

    def _use(self, mark: Mark, lease: Lease) -> None:
        scene = self._scene
        if lease.value is not None:
            fault = scene.oracle.fault(mark, lease.value, stale=not lease.fresh)
            scene.judge(mark, "value in hand", fault)
        chance = scene.random.random()
        if chance < 0.8:
            scene.cache.lease_set(lease, scene.load(mark.row), TTL)
        elif chance < 0.95:
            scene.cache.release(lease)
        else:
            scene.counts["forgotten"] += 1


def read_in_child(scene: Scene, directory: Path) -> None:
    """Fork while other threads are busy, and read in the child; it must not hang, nor answer for the parent."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(FORKED_FOR)
        try:
            scene.violations.clear()
            scene.counts.clear()
            for _ in range(FORKED_READS):
                Reader(scene).step()
            scene.leave_report(directory / f"worker-child-{os.getpid()}")
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    scene.counts["forks"] += 1
    if code:
        scene.accuse(scene.ledger.mark(0), f"a forked child ended with {code}; {-signal.SIGALRM} means that it hung")
