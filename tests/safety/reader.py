"""Every way to read a row, chosen at random, each answer judged."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable

from leasecache import LeaseTimeout, NodeError
from leasecache.lease import Hit, Lease, Stale, Wait
from tests.safety.client import HOT, LEASE_FOR, SLOWEST, TTL, Client, LoadFailed, got, ran
from tests.safety.ledger import Mark

FORKED_READS = 30
FORKED_FOR = 20  # s that a forked child has
BATCH = 4  # rows


class Reader:
    """Reads rows until the run is over."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._scene = client.scene
        self._ways: dict[Callable[[int], Awaitable[None]], int] = {
            self.call: 40,
            self.lookup: 25,
            self.batch: 10,
            self.lease: 15,
            self.peek: 5,
            self.refresh: 4,
            self.reconnect: 1,
        }

    async def run(self) -> None:
        """Read as fast as answers come."""
        while not self._scene.ledger.stopped:
            await self.step()

    async def step(self) -> None:
        """Read one row in some way; expected failures are counted."""
        scene = self._scene
        [way] = scene.random.choices([*self._ways], [*self._ways.values()])
        # a herd finds what a lone reader does not
        row = scene.random.choice([HOT, scene.random.randrange(scene.ledger.rows)])
        scene.counts["operations"] += 1
        try:
            await way(row)
        except (LoadFailed, LeaseTimeout, NodeError) as error:
            scene.counts[type(error).__name__] += 1
        except Exception as error:
            scene.accuse(scene.ledger.mark(row), f"{way.__name__} raised {type(error).__name__}: {error}")
            raise

    async def call(self, row: int) -> None:
        """The plain call, whose hits take the short way."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        value = await got(self._client.functions[row](row))
        scene.judge(mark, "call", scene.oracle.fault(mark, value, stale=True))

    async def lookup(self, row: int) -> None:
        """The call with provenance."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        entry = await got(self._client.functions[row].lookup(row))
        scene.counts[entry.state] += 1
        scene.judge(mark, entry.state, scene.oracle.entry(mark, entry))

    async def batch(self, row: int) -> None:
        """Some rows at once."""
        scene = self._scene
        alike = [other for other in range(row % 2, scene.ledger.rows, 2) if other not in SLOWEST]
        rows = scene.random.sample(alike, min(BATCH, len(alike)))
        marks = [scene.ledger.mark(other) for other in rows]
        found = await got(self._client.functions[row].get_many(rows))
        for mark in marks:
            scene.judge(mark, "get_many", scene.oracle.fault(mark, found[mark.row], stale=True))

    async def peek(self, row: int) -> None:
        """A look that takes no lease."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        entry = await got(self._client.functions[row].peek(row))
        if entry is not None:
            scene.judge(mark, f"peek {entry.state}", scene.oracle.entry(mark, entry))

    async def refresh(self, row: int) -> None:
        """A load that has to begin now."""
        scene, mark = self._scene, self._scene.ledger.mark(row)
        value = await got(self._client.functions[row].refresh(row))
        scene.judge(mark, "refresh", scene.oracle.outdated(mark, value))

    async def lease(self, row: int) -> None:
        """The low-level calls: fill, give back, forget or steal."""
        client, scene, mark = self._client, self._scene, self._scene.ledger.mark(row)
        answer = await got(client.cache.lease_get(client.key(row), lease_for=LEASE_FOR))
        if isinstance(answer, (Hit, Stale)):
            stale = isinstance(answer, Stale)
            scene.judge(mark, type(answer).__name__, scene.oracle.fault(mark, answer.value, stale=stale))
        if isinstance(answer, (Stale, Wait)) and answer.token is not None and scene.random.random() < 0.2:
            answer = await got(client.store.steal(client.key(row), answer.token, LEASE_FOR))
            scene.counts["stolen"] += 1
        if isinstance(answer, Lease):
            await self._use(mark, answer)

    async def reconnect(self, row: int) -> None:
        """Close every connection that is idle, now and then."""
        if self._scene.random.random() < 0.2:
            await self._client.disconnect()

    async def _use(self, mark: Mark, lease: Lease) -> None:
        client, scene = self._client, self._scene
        if lease.value is not None:
            fault = scene.oracle.fault(mark, lease.value, stale=not lease.fresh)
            scene.judge(mark, "value in hand", fault)
        chance = scene.random.random()
        if chance < 0.8:
            await got(client.cache.lease_set(lease, await client.load(mark.row), TTL))
        elif chance < 0.95:
            await got(client.cache.release(lease))
        else:
            scene.counts["forgotten"] += 1


def read_in_child(client: Client) -> None:
    """Fork while other threads are busy, and read in the child; it must not hang, nor answer for the parent."""
    scene = client.scene
    pid = os.fork()
    if pid == 0:
        signal.alarm(FORKED_FOR)
        try:
            scene.violations.clear()
            scene.counts.clear()
            for _ in range(FORKED_READS):
                ran(Reader(client).step())
            scene.leave_report(f"child-{os.getpid()}")
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    scene.counts["forks"] += 1
    if code:
        scene.accuse(scene.ledger.mark(0), f"a forked child ended with {code}; {-signal.SIGALRM} means that it hung")
