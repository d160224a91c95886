"""The asynchronous twin of `many`: what does I/O is awaited, and decides nothing differently."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from leasecache.batch import gather
from leasecache.errors import NodeError
from leasecache.flow import look_up, renew
from leasecache.function import Args, Bound, Kwargs, Loader
from leasecache.many import BatchCore, LoadThese
from leasecache.task import Entry, Task


class AsyncCachedManyCore(BatchCore):
    """A function cached by an `AsyncCache`, many values per call."""

    async def call(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> dict[Any, Any]:
        """Return {argument: value} in asked order; one lease-get per node, one load of what nobody has."""
        batch, load_these = self.signature.split(load, skip, args, kwargs)
        if self._runtime.bypassed():
            return self.present(await load_these(batch), batch)
        bound = self.bind()
        keys = self.keys(bound, batch)
        tasks = self._tasks(bound, keys, load_these)
        found = self.sort(bound, tasks, await bound.read_many(list(tasks)))
        values = found.values
        if found.flows or found.lost:
            steps = gather(found.flows, look_up, deferred=found.lost, load_all=True)
            values = found.merge(await bound.driver.run_many(steps, self._load_many(keys, load_these)))
        return {keys[key]: values[key] for key in keys if values[key] is not None}

    async def lookup(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Entry:
        """Return the value of one argument with its provenance; None where it is absent."""
        [argument] = self.signature.key_values(args[skip:], {})
        load_these = self.signature.split(load, skip, (*args[:skip], [argument]), kwargs)[1]
        if self._runtime.bypassed():
            return Entry(self.found(await load_these([argument]), [argument])[0], "uncached", None)
        bound = self.bind()
        [task] = self._tasks(bound, self.keys(bound, [argument]), load_these).values()
        entry: Entry = await bound.driver.run(look_up(task), task)
        return entry

    async def refresh(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> dict[Any, Any]:
        """Load a batch now, store it under leases, return {argument: value}."""
        batch, load_these = self.signature.split(load, skip, args, kwargs)
        if self._runtime.bypassed():
            return self.present(await load_these(batch), batch)
        bound = self.bind()
        keys = self.keys(bound, batch)
        flows = [(task, renew(task)) for task in self._tasks(bound, keys, load_these).values()]
        steps = gather(flows, look_up, load_all=True)
        entries: Sequence[Entry] = await bound.driver.run_many(steps, self._load_many(keys, load_these))
        values = zip(keys.values(), entries, strict=True)
        return {argument: entry.value for argument, entry in values if entry.value is not None}

    async def peek(self, args: Args, kwargs: Kwargs) -> Entry | None:
        """Return the cached entry of one argument without a lease and without loading, or None."""
        bound = self.bind()
        try:
            return self.peeked(bound, await bound.driver.store.look(self.key(args, kwargs), bound.profile.mark))
        except NodeError:
            return None

    async def invalidate(self, arguments: Args) -> None:
        """Void leases on the keys and drop their values, or leave them stale for `stale_for`. Raises NodeError."""
        bound = self.bind()
        keys = list(self.keys(bound, arguments))
        await bound.driver.store.invalidate(keys, self.policy.stale_for, plain=bound.profile.mark is None)

    def _tasks(self, bound: Bound, keys: Mapping[bytes, Any], load_these: LoadThese) -> dict[bytes, Task]:
        def loading(argument: Any) -> Callable[[], Awaitable[Any]]:
            async def load() -> Any:
                return self.found(await load_these([argument]), [argument])[0]

            return load

        return {key: self.task(bound, key, loading(argument)) for key, argument in keys.items()}

    def _load_many(
        self, keys: Mapping[bytes, Any], load_these: LoadThese
    ) -> Callable[[Sequence[Task]], Awaitable[list[Any]]]:
        async def load_many(tasks: Sequence[Task]) -> list[Any]:
            batch = [keys[task.key] for task in tasks]
            return self.found(await load_these(batch), batch)

        return load_many
