"""One cached function, however it is called: its template, policy, codec and rules, and its binding to a store."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from leasecache.codecs import Codec, DecodeError, make_codec
from leasecache.errors import DefinitionError, GuardError
from leasecache.flow import Flow, fetch, look_up
from leasecache.guard import function_mark
from leasecache.keys import KeyTemplate
from leasecache.lease import Hit, Stale, Wait
from leasecache.loadtime import LoadTime
from leasecache.messages import CommitMessage, build_message
from leasecache.metrics import FunctionStats
from leasecache.policy import Policy
from leasecache.rules import Row, Rule, split_table
from leasecache.signature import Signature, qualified_name
from leasecache.task import Entry, Local, Profile, Task

log = logging.getLogger("leasecache")

Loader = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Flows = list[tuple[Task, Flow]]


class AnyDriver(Protocol):
    """What a cached function needs of the driver of its cache, synchronous or not."""

    @property
    def store(self) -> Any: ...
    @property
    def local(self) -> Local: ...


class Runtime(Protocol):
    """What a cached function needs of its cache."""

    active: Any  # the driver of the configured store, or None

    def driver(self) -> Any:
        """Return the active driver. Raises ConfigError before `configure`."""

    @property
    def bypassed(self) -> Callable[[], bool]:
        """What tells whether calls must neither be served nor fill."""

    def check_heard(self, name: str) -> None:
        """Raise ConfigError, naming the function, when no daemon hears commit messages."""

    def announce(self, conn: Any, message: CommitMessage) -> Any:
        """Run a commit message; awaited in an `AsyncCache`."""


class Bound(NamedTuple):
    """What a call needs, made once for the store that the cache has now."""

    driver: Any
    render: Callable[[tuple[Any, ...]], bytes]
    read: Callable[[bytes], Any]
    read_many: Callable[[Sequence[bytes]], Any]
    decode: Callable[[int, bytes], Any]
    flags: int  # client flags of a plain value
    profile: Profile


class Sorted(NamedTuple):
    """What a batch of lease-gets has brought: values, and flows for the keys that need more."""

    values: dict[bytes, Any]
    flows: Flows
    lost: Flows  # somebody else is loading these

    def merge(self, entries: Iterable[Entry]) -> dict[bytes, Any]:
        """Return all values, given the entries of `flows` and then `lost`."""
        runs = [*self.flows, *self.lost]
        return self.values | {task.key: entry.value for (task, _), entry in zip(runs, entries, strict=True)}


class FunctionCore:
    """The declaration of a cached function."""

    def __init__(
        self,
        fn: Loader,
        template: str,
        policy: Policy,
        *,
        signature: Callable[[Loader, Sequence[str], Sequence[str]], Signature],
        runtime: Runtime,
        depends_on: Row | Sequence[Row] | None,
        ignore: Sequence[str],
    ) -> None:
        """Check the whole declaration. Raises DefinitionError naming the fault and the fix."""
        self.name = qualified_name(fn)
        self.fn = fn
        self.policy = policy
        self.stats = FunctionStats()
        self.signature = signature(fn, KeyTemplate.fields_of(template), ignore)
        self.template = KeyTemplate.typed(template, self.signature.field_types())
        self.rules = tuple(self._rule(row) for row in _rows(depends_on))
        self._inline = bool(ignore)
        self._runtime = runtime
        self._bound: Bound | None = None
        self._codec = self._early_codec()
        self._load_time = LoadTime()
        self._told: set[str] = set()  # what guard records lack, of which the log has been told

    @property
    def codec(self) -> Codec:
        """The codec of the return annotation, resolved at first use if it did not resolve when decorated."""
        if self._codec is None:
            try:
                self._codec = self._make_codec()
            except NameError as error:
                raise DefinitionError(f"{self.name}: its return annotation does not resolve: {error}") from error
        return self._codec

    def key(self, args: Args, kwargs: Kwargs) -> bytes:
        """Return the logical key of the key's parameters. Raises TypeError naming function and field."""
        return self.bind().render(self.signature.key_values(args, kwargs))

    def commit_message(self, args: Args, kwargs: Kwargs) -> CommitMessage:
        """Return the statement that invalidates when its transaction commits. Raises ConfigError: nobody listens."""
        return self._message([self.key(args, kwargs)])

    def announce(self, conn: Any, message: CommitMessage) -> Any:
        """Run a commit message; awaited in an `AsyncCache`."""
        return self._runtime.announce(conn, message)

    def bind(self) -> Bound:
        """Return what a call needs of the store that the cache has now. Raises ConfigError before `configure`."""
        driver = self._runtime.driver()
        bound = self._bound
        if bound is None or bound.driver is not driver:
            bound = self._bound = self._bind(driver)
        return bound

    def task(self, bound: Bound, key: bytes, load: Callable[[], Any]) -> Task:
        """Return one call."""
        return Task(key=key, load=load, profile=bound.profile, local=bound.driver.local)

    def sort(self, bound: Bound, tasks: Mapping[bytes, Task], answers: Iterable[Any]) -> Sorted:
        """Decode what was hit, and begin a flow for each key that was not."""
        found = Sorted({}, [], [])
        for (key, task), answer in zip(tasks.items(), answers, strict=True):
            if type(answer) is bytes:
                answer = Hit(answer, bound.flags)
            if type(answer) is Hit:
                try:
                    found.values[key] = bound.decode(answer.flags, answer.value)
                except DecodeError:  # the flow drops it by its token and loads, or reads the mark that it is too large
                    found.flows.append((task, look_up(task)))
            elif isinstance(answer, Wait) or (isinstance(answer, Stale) and not self.policy.stale_for):
                found.lost.append((task, look_up(task)))
            else:
                found.flows.append((task, fetch(task, answer)))
        hits = len(found.values)  # beforehand: a call between read and write would lose counts of other threads
        self.stats.hits += hits
        return found

    def named(self, values: dict[bytes, Any], keys: Mapping[Any, bytes]) -> dict[Any, Any]:
        """Return {argument: value}; two arguments of one key get a copy each."""
        given: set[bytes] = set()
        named = {}
        for argument, key in keys.items():
            named[argument] = self._copy(values[key]) if key in given else values[key]
            given.add(key)
        return named

    def peeked(self, bound: Bound, hit: Hit | None) -> Entry | None:
        """Return what a look at the key has brought.

        The server does not tell whether a value was invalidated; one that could have been is reported as "stale".
        """
        if hit is None:
            return None
        try:
            value = bound.decode(hit.flags, hit.value)
        except DecodeError:
            return None
        surely_fresh = not self.policy.stale_for or hit.expires_in is None or hit.expires_in > self.policy.stale_for
        return Entry(value, "fresh" if surely_fresh else "stale", hit.expires_in)

    def _bind(self, driver: AnyDriver) -> Bound:
        store, codec, policy = driver.store, self.codec, self.policy
        name, stats = self.name, self.stats
        mark = function_mark(self.rules) if self.rules and store.guarded else None
        return Bound(
            driver=driver,
            render=self.template.renderer(store.namespace, name).from_python,
            read=store.reader(policy.lease_for, policy.refresh_ahead, codec.tag, mark),
            read_many=store.batch_reader(policy.lease_for, policy.refresh_ahead, codec.tag, mark),
            decode=codec.decode,
            flags=codec.tag,
            profile=Profile(
                name=name,
                policy=policy,
                codec=codec,
                load_time=self._load_time,
                stats=stats,
                mark=mark,
                unguarded=self._unguarded,
                inline=self._inline,
            ),
        )

    def _unguarded(self, error: GuardError) -> None:
        """Count a call whose node is not vouched for; log once what the daemon's return would not mend."""
        self.stats.unguarded += 1
        if error.missing not in ("record", *self._told):
            self._told.add(error.missing)
            log.warning("%s (%s) loads without the cache: %s", self.name, self.template.text, error)

    def _message(self, keys: Iterable[bytes]) -> CommitMessage:
        self._runtime.check_heard(self.name)
        return build_message(dict.fromkeys(keys, self.policy.stale_for))

    def _copy(self, value: Any) -> Any:
        return self.codec.decode(*self.codec.encode(value))

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
            None if self.policy.codec else self.signature.value_type(),
            name=self.policy.codec,
            version=self.policy.version,
            compress_over=self.policy.compress_over,
            where=self.name,
        )


def _rows(depends_on: Row | Sequence[Row] | None) -> tuple[Row, ...]:
    if depends_on is None:
        return ()
    rows = (depends_on,) if isinstance(depends_on, Row) else tuple(depends_on)
    if not rows or not all(isinstance(row, Row) for row in rows):
        raise DefinitionError(
            "depends_on takes one row(...) or several, such as depends_on=row('media', media_id='id')"
        )
    return rows
