"""One cached function: its template, policy and codec, and what its callers can ask of it."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from leasecache.codecs import Codec, DecodeError, make_codec
from leasecache.driver import Driver
from leasecache.errors import DefinitionError, NodeError
from leasecache.flow import AHEAD_ALWAYS, Entry, Flow, LoadTime, Task, fetch, renew
from leasecache.keys import KeyTemplate
from leasecache.lease import Answer, Ask, Hit, Lease
from leasecache.policy import Policy
from leasecache.rules import Row, Rule, split_table
from leasecache.signature import KeySignature, qualified_name, resolve
from leasecache.stores.base import Reader

Loader = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Runtime(Protocol):
    """What a cached function needs of its cache."""

    active: Driver | None  # of the configured store

    def driver(self) -> Driver:
        """Return the active driver. Raises ConfigError before `configure`."""

    def bypassed(self) -> bool:
        """Tell whether calls must neither be served nor fill."""


class CachedCore:
    """The behaviour behind a decorated function, whichever way it was bound."""

    def __init__(
        self,
        fn: Loader,
        template: str,
        policy: Policy,
        *,
        runtime: Runtime,
        depends_on: Row | Sequence[Row] | None,
        ignore: Sequence[str],
    ) -> None:
        """Check the whole declaration. Raises DefinitionError naming the fault and the fix."""
        self.name = qualified_name(fn)
        self.fn = fn
        self.policy = policy
        fields = KeyTemplate.fields_of(template)
        self.signature = KeySignature(fn, fields, ignore)
        self.template = KeyTemplate.typed(template, self.signature.field_types())
        self.rules = tuple(self._rule(row) for row in _rows(depends_on))
        self._inline = bool(ignore)
        self._runtime = runtime
        self._bound: _Bound | None = None
        self._codec = self._early_codec()
        self._load_time = LoadTime()

    def call(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Any:
        """Return the value; a plain hit is served without entering a flow. `skip` arguments are not in the key."""
        runtime, bound, signature = self._runtime, self._bound, self.signature
        if runtime.bypassed():
            return load(*args, **kwargs)
        if bound is None or bound.driver is not runtime.active:
            bound = self._bind()
        if kwargs or skip or len(args) != signature.direct:
            key = bound.render(signature.values(args[skip:], kwargs))
        else:
            key = bound.render(args)
        answer: bytes | Answer | NodeError
        try:
            answer = bound.read(key)
        except NodeError as error:
            answer = error
        if type(answer) is bytes:
            try:
                return bound.decode(bound.flags, answer)
            except DecodeError:  # the flow drops it by its token and loads
                answer = self._ask(bound.driver, key, self.policy.refresh_ahead)
        found: Any = answer
        return self._run(bound.driver, key, lambda: load(*args, **kwargs), lambda task: fetch(task, found)).value

    def lookup(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Entry:
        """Return the value with its provenance."""
        if self._runtime.bypassed():
            return Entry(load(*args, **kwargs), "uncached", None)
        driver, key = self._rendered(args[skip:], kwargs)
        answer = self._ask(driver, key, self.policy.refresh_ahead)
        return self._run(driver, key, lambda: load(*args, **kwargs), lambda task: fetch(task, answer))

    def refresh(self, load: Loader, skip: int, args: Args, kwargs: Kwargs) -> Any:
        """Load now, store under a lease, return the value."""
        if self._runtime.bypassed():
            return load(*args, **kwargs)
        driver, key = self._rendered(args[skip:], kwargs)
        answer = self._ask(driver, key, AHEAD_ALWAYS)
        return self._run(driver, key, lambda: load(*args, **kwargs), lambda task: renew(task, answer)).value

    def peek(self, args: Args, kwargs: Kwargs) -> Entry | None:
        """Return the cached entry without a lease and without loading, or None.

        The server does not tell whether a value was invalidated; one that could have been is reported as "stale".
        """
        driver = self._bind().driver
        try:
            hit = driver.store.look(self.key(args, kwargs))
            value = None if hit is None else self.codec.decode(hit.flags, hit.value)
        except (NodeError, DecodeError):
            return None
        if hit is None:
            return None
        surely_fresh = not self.policy.stale_for or hit.expires_in is None or hit.expires_in > self.policy.stale_for
        return Entry(value, "fresh" if surely_fresh else "stale", hit.expires_in)

    def invalidate(self, args: Args, kwargs: Kwargs) -> None:
        """Void leases on the key and drop its value, or leave it stale for `stale_for`. Raises NodeError."""
        self._bind().driver.store.invalidate([self.key(args, kwargs)], self.policy.stale_for)

    def key(self, args: Args, kwargs: Kwargs) -> bytes:
        """Return the logical key of the key's parameters. Raises TypeError naming function and field."""
        return self._bind().render(self.signature.key_values(args, kwargs))

    def get_many(self, load: Loader, arguments: Iterable[Any], others: Kwargs) -> dict[Any, Any]:
        """Return {argument: value} with one lease-get per node; won keys are loaded here, one after the other.

        An argument is a tuple of the key's parameters, or the only one; `others` are ignored parameters by name.
        """
        calls = {argument: argument if isinstance(argument, tuple) else (argument,) for argument in arguments}
        if self._runtime.bypassed():
            return {argument: self._loading(load, args, others)() for argument, args in calls.items()}
        driver = self._bind().driver
        keys = {argument: self.key(args, {}) for argument, args in calls.items()}
        asked = list(dict.fromkeys(keys.values()))
        asks = [Ask(key, self.policy.lease_for, self.policy.refresh_ahead) for key in asked]
        answers = dict(zip(asked, driver.store.lease_get_many(asks), strict=True))
        found: dict[Any, Any] = {}
        with _Unbegun(driver, [answer for answer in answers.values() if isinstance(answer, Lease)]) as unbegun:
            deadline = time.monotonic() + self.policy.lease_for / 2
            for argument in sorted(keys, key=lambda a: not isinstance(answers[keys[a]], Lease)):  # the won ones first
                key, loading = keys[argument], self._loading(load, calls[argument], others)
                if time.monotonic() >= deadline:
                    unbegun.release()
                    answers.clear()
                # An answer serves once: a second argument of the same key finds what the first has stored.
                answer = answers.pop(key, None) or self._ask(driver, key, self.policy.refresh_ahead)
                unbegun.begin(answer)
                found[argument] = self._resolve(driver, key, answer, loading)
        return {argument: found[argument] for argument in calls}

    @property
    def codec(self) -> Codec:
        """The codec of the return annotation, resolved at first use if it did not resolve when decorated."""
        if self._codec is None:
            try:
                self._codec = self._make_codec()
            except NameError as error:
                raise DefinitionError(f"{self.name}: its return annotation does not resolve: {error}") from error
        return self._codec

    def _loading(self, load: Loader, args: Args, others: Kwargs) -> Callable[[], Any]:
        positional, named = self.signature.call(args, others)
        return lambda: load(*positional, **named)

    def _resolve(self, driver: Driver, key: bytes, answer: Answer | NodeError, load: Callable[[], Any]) -> Any:
        if type(answer) is Hit:
            try:
                return self.codec.decode(answer.flags, answer.value)
            except DecodeError:
                pass  # the flow drops it and loads
        return self._run(driver, key, load, lambda task: fetch(task, answer)).value

    def _ask(self, driver: Driver, key: bytes, refresh_ahead: float) -> Answer | NodeError:
        try:
            return driver.store.lease_get(key, self.policy.lease_for, refresh_ahead)
        except NodeError as error:
            return error

    def _run(self, driver: Driver, key: bytes, load: Callable[[], Any], flow: Callable[[Task], Flow]) -> Entry:
        task = Task(
            name=self.name,
            key=key,
            policy=self.policy,
            codec=self.codec,
            load=load,
            inline=self._inline,
            load_time=self._load_time,
            flights=driver.flights,
            permits=driver.permits,
        )
        return driver.run(flow(task), task)

    def _rendered(self, args: Args, kwargs: Kwargs) -> tuple[Driver, bytes]:
        bound = self._bind()
        return bound.driver, bound.render(self.signature.values(args, kwargs))

    def _bind(self) -> "_Bound":
        driver = self._runtime.driver()
        bound = self._bound
        if bound is None or bound.driver is not driver:
            store, codec, policy = driver.store, self.codec, self.policy
            render = self.template.renderer(store.namespace, self.name).from_python
            read = store.reader(policy.lease_for, policy.refresh_ahead, codec.tag)
            bound = self._bound = _Bound(driver, render, read, codec.decode, codec.tag)
        return bound

    def _rule(self, row: Row) -> Rule:
        for name in self.template.fields:
            if name not in row.fields:
                raise DefinitionError(f"{self.name}: row({row.table!r}) does not bind key field {name!r}; add {name}=…")
        for name in row.fields:
            if name not in self.template.fields:
                raise DefinitionError(f"{self.name}: row({row.table!r}) binds {name!r}, which is not a key field")
        schema, table = split_table(row.table)
        return Rule(
            function=self.name,
            template=self.template.text,
            kinds=self.template.kinds,
            schema=schema,
            table=table,
            fields=row.fields,
            columns=row.columns,
            stale_for=self.policy.stale_for,
        )

    def _early_codec(self) -> Codec | None:
        if self.policy.codec is None and "return" not in self.fn.__annotations__:
            raise DefinitionError(f"{self.name} has no return annotation; add one, or codec='json' or codec='pickle'")
        try:
            return self._make_codec()
        except NameError:
            return None

    def _make_codec(self) -> Codec:
        return make_codec(
            None if self.policy.codec else resolve(self.fn, "return"),
            name=self.policy.codec,
            version=self.policy.version,
            compress_over=self.policy.compress_over,
            where=self.name,
        )


class _Bound(NamedTuple):
    """What a call needs, made once for the store that the cache has now."""

    driver: Driver
    render: Callable[[tuple[Any, ...]], bytes]
    read: Reader
    decode: Callable[[int, bytes], Any]
    flags: int  # client flags of a plain value


class _Unbegun:
    """Leases of a batch whose loads have not begun; given back when one fails or time runs out."""

    def __init__(self, driver: Driver, answers: Iterable[Any]) -> None:
        self._driver = driver
        self._leases = {id(lease): lease for lease in answers}

    def __enter__(self) -> "_Unbegun":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def begin(self, answer: object) -> None:
        """Hand over one lease to its load."""
        self._leases.pop(id(answer), None)

    def release(self) -> None:
        """Give the others back."""
        while self._leases:
            self._driver.release(self._leases.popitem()[1])


def _rows(depends_on: Row | Sequence[Row] | None) -> tuple[Row, ...]:
    if depends_on is None:
        return ()
    rows = (depends_on,) if isinstance(depends_on, Row) else tuple(depends_on)
    if not rows or not all(isinstance(row, Row) for row in rows):
        raise DefinitionError(
            "depends_on takes one row(...) or several, such as depends_on=row('media', media_id='id')"
        )
    return rows
