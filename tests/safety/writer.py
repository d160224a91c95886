"""Updates rows and invalidates their keys, until the cache says that it has done so."""

import time

from leasecache import NodeError
from tests.safety.client import SLOW, Client, got
from tests.safety.scene import STALE_FOR


class Writer:
    """The one writer of some rows."""

    def __init__(self, client: Client, rows: list[int]) -> None:
        self._client = client
        self._scene = client.scene
        self._rows = rows

    async def run(self) -> None:
        """Update one row, or several at once, and pause."""
        scene = self._scene
        while not scene.ledger.stopped:
            first = scene.random.choice(self._rows)
            if first != SLOW or scene.random.random() < 0.3:  # its leases are to live until their loads are done
                rows = [first]
                if scene.random.random() < 0.2:
                    rows = [row for row in self._rows if row % 2 == first % 2 and row != SLOW] or [first]
                await self.write(rows)
            await self._client.pause(scene.random.choice([0.001, 0.02, 0.1]) * scene.random.random())

    async def storm(self) -> None:
        """Leave a row in peace for a while, then invalidate it all the time for longer than it may be stale."""
        scene = self._scene
        while not scene.ledger.stopped:
            await self._client.pause(0.3 + scene.random.random())  # long enough for a load to be stored
            over = time.monotonic() + 3 * STALE_FOR
            while time.monotonic() < over and not scene.ledger.stopped:
                await self.write(self._rows)
                await self._client.pause(0.01)

    async def write(self, rows: list[int]) -> None:
        """Raise the versions, then invalidate until it is acknowledged."""
        scene, began = self._scene, time.monotonic_ns()
        versions = {row: scene.ledger.update(row) for row in rows}
        attempts = 1
        while not await self._invalidate(rows):
            if scene.ledger.stopped:
                return
            attempts += 1
            await self._client.pause(0.002)
        for row, version in versions.items():
            scene.ledger.acknowledge(row, version)
            scene.history.note(row, "invalidate", began, f"version {version}, attempt {attempts}")
        scene.counts["invalidations"] += len(rows)

    async def _invalidate(self, rows: list[int]) -> bool:
        client, scene = self._client, self._scene
        try:
            if len(rows) == 1 and scene.random.random() < 0.5:
                await got(client.functions[rows[0]].invalidate(rows[0]))
            else:
                stale_for = scene.stale_for[rows[0]]
                await got(client.cache.invalidate(*[client.key(row) for row in rows], stale_for=stale_for))
        except NodeError:
            scene.counts["unacknowledged"] += 1
            return False
        return True
