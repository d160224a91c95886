"""What callers of a cached function can ask of it: the behaviour behind a decorated function, however it was bound."""

from collections.abc import Callable, Iterable
from typing import Any

from leasecache._accel import Call, Renderer
from leasecache.batch import gather
from leasecache.errors import NodeError
from leasecache.flow import Flow, fetch, look_up, renew
from leasecache.function import Args, Bound, FunctionCore, Kwargs, Loader
from leasecache.signature import KeySignature
from leasecache.task import Entry, Task


class CachedCore(FunctionCore):
    """A function cached by a `Cache`, one value per call."""

    signature: KeySignature

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `FunctionCore` takes."""
        super().__init__(*args, **kwargs)
        self.call = Call(
            self._runtime, self._shortcut, self.signature.values, self.signature.direct, self.stats, self._unplain
        )

    def served(self, load: Loader, skip: int) -> Callable[..., Any]:
        """Return `call` as a function of its arguments alone."""
        return self.call.of(load, skip)

    def lookup(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Entry:
        """Return the value with its provenance."""
        if self._runtime.bypassed():
            return Entry(load(*args, **kwargs), "uncached", None)
        bound = self.bind()
        key = bound.render(self.signature.values(args[skip:], kwargs))
        return self._run(bound, key, lambda: load(*args, **kwargs), look_up)

    def refresh(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Any:
        """Load now, store under a lease, return the value."""
        if self._runtime.bypassed():
            return load(*args, **kwargs)
        bound = self.bind()
        key = bound.render(self.signature.values(args[skip:], kwargs))
        return self._run(bound, key, lambda: load(*args, **kwargs), renew).value

    def peek(self, args: Args, kwargs: Kwargs) -> Entry | None:
        """Return the cached entry without a lease and without loading, or None; see `FunctionCore.peeked`."""
        bound = self.bind()
        try:
            return self.peeked(bound, bound.driver.store.look(self.key(args, kwargs), bound.profile.mark))
        except NodeError:
            return None

    def invalidate(self, args: Args, kwargs: Kwargs) -> None:
        """Void leases on the key and drop its value, or leave it stale for `stale_for`. Raises NodeError."""
        bound = self.bind()
        bound.driver.store.invalidate([self.key(args, kwargs)], self.policy.stale_for, plain=bound.profile.mark is None)

    def get_many(self, load: Loader, arguments: Iterable[Any], others: Kwargs) -> dict[Any, Any]:
        """Return {argument: value} with one lease-get per node; won keys are loaded here, one after the other.

        An argument is a tuple of the key's parameters, or the only one; `others` are ignored parameters by name.
        """
        asked = list(dict.fromkeys(arguments))
        if self._runtime.bypassed():
            return {argument: loading() for argument, (_, loading) in self.signature.loads(load, asked, others).items()}
        served = None if others else self.call.many(asked)
        if served is None:
            return self._get_many(self.bind(), load, asked, others)
        bound, values, rest = served
        if not rest:
            return values
        loads = self.signature.loads(load, [argument for argument, _, _ in rest], others)
        answers = {key: answer for _, key, answer in reversed(rest)}  # of two for one key, the first may have won
        keys = {argument: key for argument, key, _ in rest}
        tasks = {key: self.task(bound, key, loads[argument][1]) for argument, key in keys.items()}
        loaded = self._settle(bound, tasks, [answers[key] for key in tasks])
        values |= self.named(loaded, keys)
        return {argument: values[argument] for argument in asked}

    def _get_many(self, bound: Bound, load: Loader, asked: list[Any], others: Kwargs) -> dict[Any, Any]:
        """Do the same when arguments are ignored or left to their defaults."""
        loads = self.signature.loads(load, asked, others)
        keys = {argument: bound.render(values) for argument, (values, _) in loads.items()}
        tasks = {keys[argument]: self.task(bound, keys[argument], loading) for argument, (_, loading) in loads.items()}
        return self.named(self._settle(bound, tasks, bound.read_many(list(tasks))), keys)

    def _settle(self, bound: Bound, tasks: dict[bytes, Task], answers: Iterable[Any]) -> dict[bytes, Any]:
        found = self.sort(bound, tasks, answers)
        steps = gather(found.flows, look_up, deferred=found.lost)
        return found.merge(bound.driver.run_many(steps) if found.flows or found.lost else ())

    def _shortcut(self) -> tuple[Bound, Renderer, Callable[[bytes], Any]]:
        bound = self.bind()
        return bound, self.template.renderer(bound.driver.store.namespace, self.name), self.codec.load

    def _unplain(self, bound: Bound, load: Loader, args: Args, kwargs: Kwargs, key: bytes, found: Any) -> Any:
        """Return the value of a call that was no plain hit; `found` is the answer, or bytes that were no value."""
        # Those the flow looks up anew: it drops the item by its token and loads.
        flow = look_up if type(found) is bytes else lambda task: fetch(task, found)
        return self._run(bound, key, lambda: load(*args, **kwargs), flow).value

    def _run(self, bound: Bound, key: bytes, load: Callable[[], Any], flow: Callable[[Task], Flow]) -> Entry:
        task = self.task(bound, key, load)
        entry: Entry = bound.driver.run(flow(task), task)
        return entry
