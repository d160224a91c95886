"""The asynchronous twin of `calls`: what does I/O is awaited, and decides nothing differently."""

from collections.abc import Callable, Iterable
from typing import Any

from leasecache._accel import AsyncCall, Renderer
from leasecache.batch import gather
from leasecache.errors import NodeError
from leasecache.flow import Flow, fetch, look_up, renew
from leasecache.function import Args, Bound, FunctionCore, Kwargs, Loader
from leasecache.signature import KeySignature
from leasecache.task import Entry, Task

LOADS_AT_ONCE = 8  # of one get_many


class AsyncCachedCore(FunctionCore):
    """A function cached by an `AsyncCache`, one value per call."""

    signature: KeySignature

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `FunctionCore` takes."""
        super().__init__(*args, **kwargs)
        self._calls = AsyncCall(
            self._runtime, self._shortcut, self.signature.values, self.signature.direct, self.stats, self._unplain
        )

    async def call(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Any:
        """Return the value; a plain hit is served without entering a flow. `skip` arguments are not in the key."""
        return await self._calls.serve(load, skip, args, kwargs)

    def served(self, load: Loader, skip: int) -> Callable[..., Any]:
        """Return `call` as a coroutine function of its arguments alone."""
        serve = self._calls.serve

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await serve(load, skip, args, kwargs)

        call.__qualname__ = self.fn.__qualname__  # so that it is this function which "was never awaited"
        return call

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
            return self.peeked(bound, await bound.driver.store.look(self.key(args, kwargs), bound.profile.mark))
        except NodeError:
            return None

    async def invalidate(self, args: Args, kwargs: Kwargs) -> None:
        """Void leases on the key and drop its value, or leave it stale for `stale_for`. Raises NodeError."""
        bound = self.bind()
        await bound.driver.store.invalidate(
            [self.key(args, kwargs)], self.policy.stale_for, plain=bound.profile.mark is None
        )

    async def get_many(self, load: Loader, arguments: Iterable[Any], others: Kwargs) -> dict[Any, Any]:
        """Return {argument: value} with one lease-get per node; won keys are loaded eight at a time.

        An argument is a tuple of the key's parameters, or the only one; `others` are ignored parameters by name.
        """
        asked = list(dict.fromkeys(arguments))
        if self._runtime.bypassed():
            loads = self.signature.loads(load, asked, others)
            return {argument: await loading() for argument, (_, loading) in loads.items()}
        served = None if others else await self._calls.many(asked)
        if served is None:
            return await self._get_many(self.bind(), load, asked, others)
        bound, values, rest = served
        if not rest:
            return values
        loads = self.signature.loads(load, [argument for argument, _, _ in rest], others)
        answers = {key: answer for _, key, answer in reversed(rest)}  # of two for one key, the first may have won
        keys = {argument: key for argument, key, _ in rest}
        tasks = {key: self.task(bound, key, loads[argument][1]) for argument, key in keys.items()}
        loaded = await self._settle(bound, tasks, [answers[key] for key in tasks])
        values |= self.named(loaded, keys)
        return {argument: values[argument] for argument in asked}

    async def _get_many(self, bound: Bound, load: Loader, asked: list[Any], others: Kwargs) -> dict[Any, Any]:
        """Do the same when arguments are ignored or left to their defaults."""
        loads = self.signature.loads(load, asked, others)
        keys = {argument: bound.render(values) for argument, (values, _) in loads.items()}
        tasks = {keys[argument]: self.task(bound, keys[argument], loading) for argument, (_, loading) in loads.items()}
        return self.named(await self._settle(bound, tasks, await bound.read_many(list(tasks))), keys)

    async def _settle(self, bound: Bound, tasks: dict[bytes, Task], answers: Iterable[Any]) -> dict[bytes, Any]:
        found = self.sort(bound, tasks, answers)
        queued: set[bytes] = set()
        steps = gather([*found.flows, *found.lost], look_up, at_once=LOADS_AT_ONCE, queued=queued)
        return found.merge(await bound.driver.run_many(steps, queued=queued) if found.flows or found.lost else ())

    def _shortcut(self) -> tuple[Bound, Renderer, Callable[[bytes], Any]]:
        bound = self.bind()
        return bound, self.template.renderer(bound.driver.store.namespace, self.name), self.codec.load

    async def _unplain(self, bound: Bound, load: Loader, args: Args, kwargs: Kwargs, key: bytes, found: Any) -> Any:
        """Return the value of a call that was no plain hit; `found` is the answer, or bytes that were no value."""
        # Those the flow looks up anew: it drops the item by its token and loads.
        flow = look_up if type(found) is bytes else lambda task: fetch(task, found)
        return (await self._run(bound, key, lambda: load(*args, **kwargs), flow)).value

    async def _run(self, bound: Bound, key: bytes, load: Callable[[], Any], flow: Callable[[Task], Flow]) -> Entry:
        task = self.task(bound, key, load)
        entry: Entry = await bound.driver.run(flow(task), task)
        return entry
