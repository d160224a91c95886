"""The asynchronous twin of `calls`: what does I/O is awaited, and decides nothing differently."""

from collections.abc import Callable, Iterable
from typing import Any

from leasecache.batch import gather
from leasecache.codecs import DecodeError
from leasecache.errors import NodeError
from leasecache.flow import Flow, fetch, look_up, renew
from leasecache.function import Args, Bound, FunctionCore, Kwargs, Loader
from leasecache.lease import Answer
from leasecache.signature import KeySignature
from leasecache.task import Entry, Task

LOADS_AT_ONCE = 8  # of one get_many


class AsyncCachedCore(FunctionCore):
    """A function cached by an `AsyncCache`, one value per call."""

    signature: KeySignature

    async def call(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Any:
        """Return the value; a plain hit is served without entering a flow. `skip` arguments are not in the key."""
        runtime, bound, signature = self._runtime, self._bound, self.signature
        if runtime.bypassed():
            return await load(*args, **kwargs)
        if bound is None or bound.driver is not runtime.active:
            bound = self.bind()
        if kwargs or skip or len(args) != signature.direct:
            key = bound.render(signature.values(args[skip:], kwargs))
        else:
            key = bound.render(args)
        answer: bytes | Answer | NodeError
        try:
            answer = await bound.read(key)
        except NodeError as error:
            answer = error
        if type(answer) is bytes:
            try:
                value = bound.decode(bound.flags, answer)
            except DecodeError:  # the flow drops it by its token and loads
                return (await self._run(bound, key, lambda: load(*args, **kwargs), look_up)).value
            self.stats.hits += 1
            return value
        found: Any = answer
        return (await self._run(bound, key, lambda: load(*args, **kwargs), lambda task: fetch(task, found))).value

    async def lookup(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Entry:
        """Return the value with its provenance."""
        if self._runtime.bypassed():
            return Entry(await load(*args, **kwargs), "uncached", None)
        bound = self.bind()
        key = bound.render(self.signature.values(args[skip:], kwargs))
        return await self._run(bound, key, lambda: load(*args, **kwargs), look_up)

    async def refresh(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Any:
        """Load now, store under a lease, return the value."""
        if self._runtime.bypassed():
            return await load(*args, **kwargs)
        bound = self.bind()
        key = bound.render(self.signature.values(args[skip:], kwargs))
        return (await self._run(bound, key, lambda: load(*args, **kwargs), renew)).value

    async def peek(self, args: Args, kwargs: Kwargs) -> Entry | None:
        """Return the cached entry without a lease and without loading, or None; see `FunctionCore.peeked`."""
        bound = self.bind()
        try:
            return self.peeked(bound, await bound.driver.store.look(self.key(args, kwargs)))
        except NodeError:
            return None

    async def invalidate(self, args: Args, kwargs: Kwargs) -> None:
        """Void leases on the key and drop its value, or leave it stale for `stale_for`. Raises NodeError."""
        await self.bind().driver.store.invalidate([self.key(args, kwargs)], self.policy.stale_for)

    async def get_many(self, load: Loader, arguments: Iterable[Any], others: Kwargs) -> dict[Any, Any]:
        """Return {argument: value} with one lease-get per node; won keys are loaded eight at a time.

        An argument is a tuple of the key's parameters, or the only one; `others` are ignored parameters by name.
        """
        loads = self.signature.loads(load, arguments, others)
        if self._runtime.bypassed():
            return {argument: await loading() for argument, (_, loading) in loads.items()}
        bound = self.bind()
        keys = {argument: bound.render(values) for argument, (values, _) in loads.items()}
        tasks = {keys[argument]: self.task(bound, keys[argument], loading) for argument, (_, loading) in loads.items()}
        found = self.sort(bound, tasks, await bound.read_many(list(tasks)))
        steps = gather([*found.flows, *found.lost], look_up, at_once=LOADS_AT_ONCE)
        values = found.merge(await bound.driver.run_many(steps) if found.flows or found.lost else ())
        return self.named(values, keys)

    async def _run(self, bound: Bound, key: bytes, load: Callable[[], Any], flow: Callable[[Task], Flow]) -> Entry:
        task = self.task(bound, key, load)
        entry: Entry = await bound.driver.run(flow(task), task)
        return entry
