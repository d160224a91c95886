"""A cache with functions over the rows, synchronous or asynchronous, behind one set of coroutines.

A coroutine over the synchronous cache never suspends: `ran` takes it to its end in the calling thread.
"""

import asyncio
import inspect
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from leasecache import AsyncCache, Cache
from leasecache.lease import Refused, Stored
from tests.safety.oracle import Value
from tests.safety.scene import STALE_FOR, Scene

TTL = 6.0  # s
LEASE_FOR = 1.0  # s
AHEAD = 2.0  # s
HOT = 0  # the row that half of the readers want
STORMY = 1  # the row that is invalidated so often that hardly any load of it is in time
SLOW = 2  # the row whose loads outlast a server's restart
SLOWEST = {STORMY: 0.2, SLOW: 0.6}  # s


T = TypeVar("T")


class LoadFailed(Exception):
    """What the loader raises now and then."""


def ran(coroutine: Coroutine[Any, Any, T]) -> T:
    """Take a coroutine that does not suspend to its end, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise RuntimeError("a coroutine over a synchronous cache has suspended")


async def got(found: Any) -> Any:
    """Return a result, awaited if it has to be."""
    return await found if inspect.isawaitable(found) else found


class Client:
    """One cache of a process."""

    def __init__(self, scene: Scene, *, asynchronous: bool = False) -> None:
        self.scene = scene
        self.asynchronous = asynchronous
        self.cache: Any = (AsyncCache if asynchronous else Cache).from_url(scene.setup.url)
        common: dict[str, Any] = {"ttl": TTL, "refresh_ahead": AHEAD, "lease_for": LEASE_FOR, "wait_for": 0.5}
        loaders: list[Any] = [self._aload, self._asoft] if asynchronous else [self._load, self._soft]
        hard = self.cache.cached("hard:{row}", **common)(loaders[0])
        soft = self.cache.cached("soft:{row}", stale_for=STALE_FOR, **common)(loaders[1])
        self.functions: dict[int, Any] = {row: soft if row % 2 else hard for row in range(scene.setup.rows)}
        self._rows = {self.key(row): row for row in self.functions}
        self._observe_fills()

    @property
    def store(self) -> Any:
        """The store behind the cache, for calls that the cache does not offer."""
        return self.cache.driver().store

    def key(self, row: int) -> bytes:
        """Return the cache key of a row."""
        key: bytes = self.functions[row].key(row)
        return key

    async def load(self, row: int) -> bytes:
        """Read a row from the database."""
        value: bytes = await got((self._aload if self.asynchronous else self._load)(row))
        return value

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await got((asyncio.sleep if self.asynchronous else time.sleep)(seconds))

    async def disconnect(self) -> None:
        """Close the connections that are idle; the cache opens others when it needs them."""
        await got(self.store.aclose() if self.asynchronous else self.store.close())

    async def close(self) -> None:
        """Close the cache."""
        await got(self.cache.aclose() if self.asynchronous else self.cache.close())

    def _load(self, row: int) -> bytes:
        """Read a row as a database does: the version that is there now arrives a little later."""
        began, version = time.monotonic_ns(), self.scene.ledger.version(row)
        time.sleep(self._delay(row))
        return self._delivered(row, began, version)

    def _soft(self, row: int) -> bytes:
        return self._load(row)

    async def _aload(self, row: int) -> bytes:
        began, version = time.monotonic_ns(), self.scene.ledger.version(row)
        await asyncio.sleep(self._delay(row))
        return self._delivered(row, began, version)

    async def _asoft(self, row: int) -> bytes:
        return await self._aload(row)

    def _delay(self, row: int) -> float:
        """Choose how long an answer of the database is on its way, in s."""
        chance, scale = self.scene.random.random(), self.scene.random.random()
        if row in SLOWEST:
            return SLOWEST[row] * (0.5 + scale / 2)
        if chance < 0.7:
            return scale * 0.003
        return scale * (0.06 if chance < 0.98 else 1.5 * LEASE_FOR)

    def _delivered(self, row: int, began: int, version: int) -> bytes:
        dice = self.scene.random
        self.scene.history.note(row, "load", began, f"version {version}")
        if dice.random() < 0.01:
            raise LoadFailed
        return Value.encode(row, version, 40_000 if dice.random() < 0.02 else dice.randrange(100))

    def _observe_fills(self) -> None:
        """Note every store that is tried, with the bytes it would store."""
        store = self.store
        lease_set, lease_set_many = store.lease_set, store.lease_set_many

        async def many(fills: Sequence[Any]) -> Any:
            began = time.monotonic_ns()
            outcomes: list[Any] = [None] * len(fills)
            try:
                outcomes = await got(lease_set_many(fills))
            finally:
                for fill, outcome in zip(fills, outcomes, strict=True):
                    self._note_fill(began, fill[0], fill[2], outcome)
            return outcomes

        async def single(*fill: Any) -> Any:
            began = time.monotonic_ns()
            outcome: Any = Refused("failed")
            try:
                outcome = await got(lease_set(*fill))
            finally:
                self._note_fill(began, fill[0], fill[2], outcome)
            return outcome

        store.lease_set = single if self.asynchronous else lambda *fill: ran(single(*fill))
        store.lease_set_many = many if self.asynchronous else lambda fills: ran(many(fills))

    def _note_fill(self, began: int, lease: Any, body: bytes, outcome: Any) -> None:
        stored = isinstance(outcome, Stored)
        said = "stored" if stored else getattr(outcome, "reason", "failed")
        detail = f"{body[:12]!r} under {tuple(lease.token or ())}: {said}"
        self.scene.history.note(self._rows[lease.key], "fill", began, detail)
        self.scene.counts["stored" if stored else "refused"] += 1
