"""Leases on one memcached server for asyncio: one connection per event loop, shared by all its tasks."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from leasecache import _accel
from leasecache._accel import Mux, Reply
from leasecache.errors import GuardError, LeasecacheError, NodeError, NodeTimeout
from leasecache.fork import forget_after_fork
from leasecache.lease import ANY_CONNECTION, Answer, Ask, Fill, Hit, Lease, Refused, Token
from leasecache.metrics import NodeStats
from leasecache.stores import classic, greeting, meta
from leasecache.stores.base import AsyncBatchReader, AsyncReader, Outcome
from leasecache.stores.clock import Reading
from leasecache.stores.conversation import Caller, Conversation
from leasecache.stores.dial import Tls
from leasecache.stores.greeting import Credentials
from leasecache.stores.guarding import GuardedBatch, Guarding
from leasecache.stores.joined import Loop, joined
from leasecache.stores.memcached import batch_request, chunks, store_request
from leasecache.stores.memcached_link import QUIET, NoEpoch
from leasecache.stores.pool import EPOCH, NUMBERS
from leasecache.stores.probe import Probe
from leasecache.stores.shutdown import Shutdown
from leasecache.stores.trust import Trust

T = TypeVar("T")
C = TypeVar("C")
Build = Callable[[Any], bytes]  # the request, for this connection
Read = Callable[[list[Reply], int, int, C], T]  # replies, epoch when they were asked for, that of the connection


class AsyncMemcachedNode:
    """One memcached server: leases by the meta protocol over a multiplexed connection per event loop."""

    def __init__(
        self,
        name: str,
        *,
        timeout: float = 1.0,
        connect_timeout: float = 1.0,
        tls: Tls | ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
        proxied: bool = False,
    ) -> None:
        """`name` is "host:port" or a socket's path; times in s. Opens nothing.

        `proxied`: what answers there is a TCP proxy, so that only CAS numbers chosen by us make a lease safe.
        """
        self.name = name
        self.errors = NodeStats()
        self._timeout = timeout
        self._caller = Caller(
            name, timeout=timeout, connect_timeout=connect_timeout, tls=tls, credentials=credentials, proxied=proxied
        )
        self._epoch = NoEpoch() if proxied else EPOCH
        self._muxes: dict[Loop, Mux] = {}  # the same object for ever: readers hold on to it
        self._opening: dict[Loop, asyncio.Task[Mux]] = {}
        self._readings: dict[Loop, Reading] = {}  # of the server's clock
        self._reading: dict[Loop, asyncio.Task[None]] = {}
        self._item_size_max: int | None = None  # bytes, as the server has said; None = not yet
        self._shutdown = Shutdown(self._leave)
        self._down = Probe(self.errors)
        self.trust: Trust | None = None
        forget_after_fork(self)

    @property
    def connections(self) -> tuple[int, int]:
        """The number of connections that are open, and of those among them on which nobody waits for an answer."""
        muxes = list(self._muxes.values())
        return len(muxes), sum(mux.idle for mux in muxes)

    async def lease_get(
        self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None
    ) -> Answer:
        """Return the value, or the lease to load it, or who has it. Raises NodeError."""
        [answer] = await self.lease_get_many([Ask(key, lease_for, refresh_ahead, mark)])
        if isinstance(answer, NodeError):
            raise answer
        return answer

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> AsyncReader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags.

        What it returns is to be awaited at once. With an open connection the request is on its way by then.
        """
        head, middle, end = meta.lease_get(b"%", lease_for, refresh_ahead, b"%").split(b"%")
        return _accel.MuxReader(
            self._muxes,
            (head, middle, end),
            flags,
            meta.read_answers,
            lambda key: self.lease_get(key, lease_for, refresh_ahead, mark),
            None if mark is None else Guarding(self._trusted(), mark),
        )

    async def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask, in order, or its GuardError. Raises NodeError."""
        if any(ask.mark is not None for ask in asks):
            return await self._get_guarded(asks)
        keys = [ask.key for ask in asks]
        return [*await self._exchange(batch_request(asks), len(keys), meta.read_answers, keys)] if keys else []

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> AsyncBatchReader:
        """Return a lease-get of many keys that gives the values alone of plain hits with these client flags."""

        async def read(keys: Sequence[bytes]) -> list[bytes | Answer | NodeError]:
            answers = await self.lease_get_many([Ask(key, lease_for, refresh_ahead, mark) for key in keys])
            return [a.value if type(a) is Hit and a.flags == flags else a for a in answers]

        return read

    async def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under the lease. Raises NodeError.

        Of a value that the server cannot hold there is a mark instead, so that nobody waits for it: UNCACHEABLE.
        """
        if lease.token is None:
            return Refused("the server had no room for a lease, or holds somebody else's value")
        limit, key = self._item_size_max, meta.on_the_wire(lease.key, lease.token)
        fits = limit is None or len(key) + len(body) + meta.ITEM_OVERHEAD <= limit
        fill = Fill(lease, flags, body, ttl)

        def build(mux: Mux) -> bytes:
            return store_request(fill, fits, mux.mark(), lambda: self._readings[mux.loop].now())

        dated = meta.is_date(ttl)
        outcome: Outcome | None = await self._present(lease.token.epoch, build, 1, meta.read_outcome, None, dated)
        if outcome is None:
            return Refused("the connection from before the lease is gone, the server may have restarted")
        if isinstance(outcome, meta.NoRoom):
            with contextlib.suppress(NodeError):  # then it runs out by itself
                await self.release(lease)
        return outcome if fits else Refused(f"larger than the server's item_size_max of {limit} bytes")

    async def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome]:
        """Store under each lease, in one pipeline. Raises NodeError."""
        return list(await asyncio.gather(*[self.lease_set(*fill) for fill in fills]))

    async def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next reader wins at once. Raises NodeError."""
        if lease.token is not None and meta.release(lease) is not None:
            await self._present(lease.token.epoch, lambda m: _release(lease, m), 1, meta.read_nothing, None)

    async def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names, unless it is gone, and answer as a lease-get then does. Raises NodeError.

        Of many who steal one token one gets a lease: the server compares the CAS.
        """
        await self._present(token.epoch, lambda m: meta.steal(key, token, m.mark()), 1, meta.read_nothing, None)
        return await self.lease_get(key, lease_for, mark=mark)

    async def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s.

        Returns once the server has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        for part in chunks(list(dict.fromkeys(keys)), lambda key: len(key) + meta.REQUEST_OVERHEAD):
            if stale_for < 1:
                await self._delete(part)
            else:
                await self._mark_stale(part, stale_for)

    async def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:
        """Invalidate these keys, which are those on the wire; then return the guard record, None = absent.

        Raises NodeError.
        """
        await self.invalidate(keys, stale_for)
        return await self._exchange(lambda m: meta.read_record(guard_key), 1, meta.record, None)

    async def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching leases or recency; the answer does not tell whether it is stale.

        Raises NodeError.
        """
        self._down.check(f"memcached {self.name}")
        async with self._conversation() as conversation:
            if mark is not None:
                key = await Guarding(self._trusted(), mark).find(key, conversation)
            for _ in range(10):  # until both answers are about the same version of the item
                looked = await conversation.ask(classic.look(key), classic.read_look)
                seen = meta.debug(looked.debug)
                if seen is None or seen[1] == looked.cas:
                    break
        return Hit(looked.value, looked.flags, seen[0]) if seen is not None and looked.flags else None

    async def stats(self) -> dict[str, Any]:
        """Return the server's own figures (memcached doc/protocol.txt, "General-purpose statistics")."""
        self._down.check(f"memcached {self.name}")
        async with self._conversation() as conversation:
            return await conversation.ask(classic.STATS, classic.read_stats)

    async def aclose(self) -> None:
        """Close the connections, this loop's when its requests are answered; the node can be used again."""
        for tasks in (self._opening, self._reading):
            task = tasks.get(asyncio.get_running_loop())
            if task is not None:
                await asyncio.wait({task})
        mine = asyncio.get_running_loop()
        for loop, mux in list(self._muxes.items()):
            if loop is not mine and not loop.is_closed():
                loop.call_soon_threadsafe(mux.close)
        await self._leave()

    def lost(self, mux: Mux, error: NodeError | None, failed: bool) -> None:
        """Forget a connection that has ended, with an error for those who waited; a failed node is left alone."""
        if self._muxes.get(mux.loop) is mux:
            del self._muxes[mux.loop]
        if error is not None:
            self.errors.count(error)
        if failed:
            self._down.failed()

    def orphaned(self, mux: Mux | None, result: Any) -> None:
        """Give back the leases that a cancelled caller has won, or that were won under another generation."""
        for answer in result if isinstance(result, list) else [result]:
            if mux is not None and mux.open and isinstance(answer, Lease) and meta.release(answer) is not None:
                mux.ask(_release(answer, mux), 1, meta.read_nothing, None).discard()

    def forget(self) -> None:
        """Let go of the parent's connections after a fork; the parent goes on using them."""
        for mux in self._muxes.values():
            mux.detach()
        self._muxes.clear()
        self._opening.clear()
        self._reading.clear()

    async def _leave(self) -> None:
        """Close the connection of this event loop when its requests are answered."""
        mux = self._muxes.get(asyncio.get_running_loop())
        if mux is not None:
            mux.close()
            await asyncio.shield(mux.closed)

    async def _get_guarded(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        batch, used = GuardedBatch(self._trusted(), asks), self._muxes.get(asyncio.get_running_loop())

        def build(mux: Mux) -> bytes:
            nonlocal used
            used = mux
            return batch.request(mux.mark)

        try:
            while batch.begin():
                found = await self._exchange(build, batch.count, batch.read, None)
                self.orphaned(used, batch.take(found))
        except NodeError as error:
            batch.fail(error)
        except BaseException:
            self.orphaned(used, batch.won)
            raise
        return batch.answers

    def _trusted(self) -> Trust:
        if self.trust is None:
            raise TypeError(f"memcached {self.name} is not guarded")
        return self.trust

    async def _delete(self, keys: Sequence[bytes]) -> None:
        await self._exchange(lambda m: meta.delete_quietly(keys), QUIET, meta.read_acknowledgement, None)

    async def _mark_stale(self, keys: Sequence[bytes], stale_for: float) -> None:
        for _ in range(meta.LOOKS):
            if await self._marked_stale(keys, stale_for):
                return
        await self._delete(keys)

    async def _marked_stale(self, keys: Sequence[bytes], stale_for: float) -> bool:
        """Mark what has not changed since it was looked at; tell whether that was everything."""
        windows = await self._exchange(lambda m: meta.look(keys), len(keys), meta.read_windows, stale_for)
        seen = list(zip(keys, windows, strict=True))

        def build(mux: Mux) -> bytes:
            return meta.mark_stale_quietly(seen, lambda: self._readings[mux.loop].now(), mux.mark)

        dated = any(meta.is_date(window.seconds) for window in windows)
        return await self._exchange(build, QUIET, meta.read_marked, None, dated)

    async def _exchange(self, build: Build, count: int, read: Read[C, T], context: C, dated: bool = False) -> T:
        """Ask over this loop's connection, and over another one if the server has ended that.

        `dated`: the request has dates, so that the server's time must be known first.
        """
        try:
            while True:
                mux = await self._mux()
                try:
                    result = await self._over(mux, build, count, read, context, dated)
                except NodeError:
                    if not mux.died:
                        raise
                else:
                    if mux.open:  # what came behind the answer may have ended it
                        self._down.answered()
                    return result
        except asyncio.CancelledError:
            self._down.passed_on()
            raise

    async def _present(
        self, epoch: int, build: Build, count: int, read: Read[C, T], context: C, dated: bool = False
    ) -> T | None:
        """Ask with tokens of `epoch`, over a connection that may present them; None when there is none."""
        if epoch == ANY_CONNECTION:
            return await self._exchange(build, count, read, context, dated)
        mux = self._muxes.get(asyncio.get_running_loop())
        if mux is None or not mux.open or mux.born > epoch:
            return None
        return await self._over(mux, build, count, read, context, dated)

    async def _over(self, mux: Mux, build: Build, count: int, read: Read[C, T], context: C, dated: bool = False) -> T:
        """Ask when there is room: more than the connection takes would only fill memory."""
        if dated:
            await self._read_clock(mux)
        until = time.monotonic() + self._timeout
        while mux.full:
            if time.monotonic() > until:
                raise NodeTimeout(f"memcached {self.name}: not sent within {self._timeout:g} s")
            await mux.drained()
        result: T = await mux.ask(build(mux), count, read, context)
        return result

    async def _mux(self) -> Mux:
        """Return this loop's connection; whoever comes while it is being opened waits for the same one."""
        loop = asyncio.get_running_loop()
        mux = self._muxes.get(loop)
        if mux is not None and mux.open:
            return mux
        if loop not in self._opening:
            self._down.check(f"memcached {self.name}")
            self._forget_closed_loops()
        return await joined(self._opening, lambda: self._open(loop))

    async def _read_clock(self, mux: Mux) -> None:
        """Make sure that there is a recent reading of the server that `mux` is connected to. Raises NodeError."""
        for _ in range(2):  # what is being read may be from before the connection
            reading = self._readings.get(mux.loop)
            if reading is not None and reading.holds(mux.born):
                return
            await joined(self._reading, self._read)

    async def _read(self) -> None:
        epoch = EPOCH.latest
        async with self._conversation() as conversation:
            seconds = await conversation.ask(classic.STATS, classic.read_time)
        self._readings[asyncio.get_running_loop()] = Reading(seconds, time.monotonic(), epoch)

    async def _open(self, loop: Loop) -> Mux:
        conversation, terms = await self._called()
        self._item_size_max = terms.item_size_max
        mark, most = NUMBERS.mark if terms.explicit else bytes, terms.item_size_max or greeting.LARGEST
        name, born, parse = f"memcached {self.name}", EPOCH.advance(), _accel.parse_reply
        mux = _accel.Mux(name, self, self._epoch, born, mark, self._timeout, parse, most)
        self._shutdown.watch()
        conversation.hand_over(mux)
        self._muxes[loop] = mux
        return mux

    async def _called(self) -> Any:
        try:
            return await self._caller.call()
        except LeasecacheError as error:
            if isinstance(error, NodeError):
                self.errors.count(error)
            self._down.failed()
            raise

    @contextlib.asynccontextmanager
    async def _conversation(self) -> AsyncIterator[Conversation]:
        """Open a connection for one task in the classic protocol; what it meets counts. Raises NodeError."""
        conversation, _ = await self._called()
        try:
            yield conversation
        except GuardError:  # nothing is wrong with the node
            self._down.answered()
            raise
        except NodeError as error:
            self.errors.count(error)
            if not isinstance(error, meta.Complaint):
                self._down.failed()
            raise type(error)(f"memcached {self.name}: {error}") from error
        finally:
            conversation.abort()
        self._down.answered()

    def _forget_closed_loops(self) -> None:
        for known in (self._muxes, self._opening, self._readings, self._reading):
            for loop in [loop for loop in known if loop.is_closed()]:
                known.pop(loop, None)


def _release(lease: Lease, mux: Mux) -> bytes:
    return meta.release(lease, mux.mark()) or b""
