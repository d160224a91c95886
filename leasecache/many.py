"""The behaviour behind `cached_many`: one loader for a batch of keys, one value per key."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from leasecache.batch import gather
from leasecache.errors import NodeError
from leasecache.flow import look_up, renew
from leasecache.function import Args, Bound, FunctionCore, Kwargs, Loader
from leasecache.messages import CommitMessage
from leasecache.signature import BatchSignature
from leasecache.task import Entry, Task

LoadThese = Callable[[list[Any]], Any]


class BatchCore(FunctionCore):
    """The declaration of a function that loads many values at once; what is absent is cached as absent."""

    signature: BatchSignature

    def keys(self, bound: Bound, batch: Iterable[Any]) -> dict[bytes, Any]:
        """Return {key: argument}. Raises TypeError naming function and field."""
        return {bound.render((argument,)): argument for argument in batch}

    def commit_message(self, args: Args, kwargs: Kwargs) -> CommitMessage:
        """Return the statement that invalidates these keys when its transaction commits. Raises ConfigError."""
        return self._message(self.keys(self.bind(), args))

    def found(self, loaded: Any, batch: Iterable[Any]) -> list[Any]:
        """Return the value of each argument, None where it is absent. Raises TypeError when no mapping was loaded."""
        if not isinstance(loaded, Mapping):
            raise TypeError(f"{self.name} must return a mapping, not {type(loaded).__name__}")
        return [loaded.get(argument) for argument in batch]

    def present(self, loaded: Any, batch: Iterable[Any]) -> dict[Any, Any]:
        """Return {argument: value} in the order of the batch, what is absent left out."""
        batch = list(batch)
        values = zip(batch, self.found(loaded, batch), strict=True)
        return {argument: value for argument, value in values if value is not None}


class CachedManyCore(BatchCore):
    """A function cached by a `Cache`, many values per call."""

    def call(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> dict[Any, Any]:
        """Return {argument: value} in asked order; one lease-get per node, one load of what nobody has."""
        batch, load_these = self.signature.split(load, skip, args, kwargs)
        if self._runtime.bypassed():
            return self.present(load_these(batch), batch)
        bound = self.bind()
        keys = self.keys(bound, batch)
        tasks = self._tasks(bound, keys, load_these)
        found = self.sort(bound, tasks, bound.read_many(list(tasks)))
        values = found.values
        if found.flows or found.lost:
            steps = gather(found.flows, look_up, deferred=found.lost, load_all=True)
            values = found.merge(bound.driver.run_many(steps, self._load_many(keys, load_these)))
        return {keys[key]: values[key] for key in keys if values[key] is not None}

    def lookup(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Entry:
        """Return the value of one argument with its provenance; None where it is absent."""
        [argument] = self.signature.key_values(args[skip:], {})
        load_these = self.signature.split(load, skip, (*args[:skip], [argument]), kwargs)[1]
        if self._runtime.bypassed():
            return Entry(self.found(load_these([argument]), [argument])[0], "uncached", None)
        bound = self.bind()
        [task] = self._tasks(bound, self.keys(bound, [argument]), load_these).values()
        entry: Entry = bound.driver.run(look_up(task), task)
        return entry

    def refresh(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> dict[Any, Any]:
        """Load a batch now, store it under leases, return {argument: value}."""
        batch, load_these = self.signature.split(load, skip, args, kwargs)
        if self._runtime.bypassed():
            return self.present(load_these(batch), batch)
        bound = self.bind()
        keys = self.keys(bound, batch)
        flows = [(task, renew(task)) for task in self._tasks(bound, keys, load_these).values()]
        steps = gather(flows, look_up, load_all=True)
        entries: Sequence[Entry] = bound.driver.run_many(steps, self._load_many(keys, load_these))
        values = zip(keys.values(), entries, strict=True)
        return {argument: entry.value for argument, entry in values if entry.value is not None}

    def peek(self, args: Args, kwargs: Kwargs) -> Entry | None:
        """Return the cached entry of one argument without a lease and without loading, or None."""
        bound = self.bind()
        try:
            return self.peeked(bound, bound.driver.store.look(self.key(args, kwargs), bound.profile.mark))
        except NodeError:
            return None

    def invalidate(self, arguments: Args) -> None:
        """Void leases on the keys and drop their values, or leave them stale for `stale_for`. Raises NodeError."""
        bound = self.bind()
        keys = list(self.keys(bound, arguments))
        bound.driver.store.invalidate(keys, self.policy.stale_for, plain=bound.profile.mark is None)

    def _tasks(self, bound: Bound, keys: Mapping[bytes, Any], load_these: LoadThese) -> dict[bytes, Task]:
        def loading(argument: Any) -> Callable[[], Any]:
            return lambda: self.found(load_these([argument]), [argument])[0]

        return {key: self.task(bound, key, loading(argument)) for key, argument in keys.items()}

    def _load_many(self, keys: Mapping[bytes, Any], load_these: LoadThese) -> Callable[[Sequence[Task]], list[Any]]:
        def load_many(tasks: Sequence[Task]) -> list[Any]:
            batch = [keys[task.key] for task in tasks]
            return self.found(load_these(batch), batch)

        return load_many
