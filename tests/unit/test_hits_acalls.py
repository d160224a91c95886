"""The awaited call of a cached function: what is served at once, what goes the other way, and who is cancelled when."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from leasecache import AsyncCache
from leasecache.errors import NodeError
from leasecache.lease import Hit, Lease
from leasecache.metrics import FunctionStats
from tests.property.test_mux import FLAGS, Line, hit, turn
from tests.twins import USABLE

LIMIT = 60  # s


class Function:
    """A cached coroutine function over a line of the test's own, and what became of its calls."""

    def __init__(self, twin: Any, ring: bool = False) -> None:
        self.twin = twin
        self.line = Line(twin)
        self.stats = FunctionStats()
        self.switch: ContextVar[bool] = ContextVar("bypass", default=False)
        self.bypassed = twin.Bypass(self.switch, None)
        self.active = object()
        self.decode: Callable[[bytes], Any] = bytes.decode
        self.otherwise: list[Any] = []
        self.hold: asyncio.Event | None = None
        readers = [self.line.read] * 2
        self.read: Callable[[bytes], Awaitable[Any]] = (
            twin.RingReader(twin.Ring([1, 2], [1.0, 1.0]), readers) if ring else self.line.read
        )
        self.read_many: Any = None
        self.call = twin.AsyncCall(self, self._bind, self._values, 1, self.stats, self._otherwise)

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        async def call() -> Any:
            return await self.call.serve(self._load, 0, args, kwargs)

        return call()

    def task(self, n: int) -> "asyncio.Task[Any]":
        """Begin a call in a task of its own."""
        return asyncio.get_running_loop().create_task(self(n))

    def _bind(self) -> tuple[Any, Any, Any]:
        renderer = self.twin.Renderer("f", (b"", b""), ("n",), (0,), (False,), (None,))
        return (
            SimpleNamespace(driver=self.active, read=self.read, read_many=self.read_many),
            renderer,
            lambda body: self.decode(body),
        )

    def _values(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        return (*args, *kwargs.values())

    async def _load(self, *args: Any, **kwargs: Any) -> str:
        return f"loaded {args} {kwargs}"

    async def _otherwise(self, bound: Any, load: Any, args: Any, kwargs: Any, key: bytes, found: Any) -> str:
        self.otherwise.append((key, found))
        if self.hold is not None:
            await self.hold.wait()
        return "otherwise"


def runs(body: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """Make a test of a coroutine function, for each twin that works with the counters of this process."""

    def test(twin: Any) -> None:
        asyncio.run(body(twin))

    test.__doc__ = body.__doc__
    return pytest.mark.parametrize("twin", USABLE, ids=lambda twin: twin.__name__)(test)


@runs
async def test_plain_hits(twin: Any) -> None:
    """Calls of one turn leave together when they are awaited, and each gets its own value, counted."""
    function = Function(twin)
    tasks = [function.task(n) for n in range(10, 13)]
    assert function.line.sent == b""
    await turn()
    assert [line.split()[1] for line in function.line.sent.splitlines()] == [b"10", b"11", b"12"]
    function.line.receive(hit(b"10") + hit(b"11") + hit(b"12"))
    assert await asyncio.gather(*tasks) == ["10", "11", "12"]
    assert function.stats.hits == 3
    assert function.otherwise == []


@runs
async def test_hits_of_a_ring(twin: Any) -> None:
    """With several nodes the owner of the key is asked."""
    function = Function(twin, ring=True)
    task = function.task(1)
    await turn()
    function.line.receive(hit(b"1"))
    assert await task == "1"


@runs
async def test_other_answers(twin: Any) -> None:
    """A lease, a value of another type and an error of the node go the other way, and count as no hits."""
    function = Function(twin)
    tasks = [function.task(n) for n in range(4)]
    await turn()
    function.line.receive(b"VA 0 c7 f0 t10 W\r\n\r\n" + hit(b"1", flags=FLAGS + 1) + b"SERVER_ERROR busy\r\n")
    function.line.receive(hit(b"\xff"))
    assert await asyncio.gather(*tasks) == ["otherwise"] * 4
    (_, lease), (_, other), (_, error), (key, body) = function.otherwise
    assert isinstance(lease, Lease)
    assert isinstance(other, Hit)
    assert isinstance(error, NodeError)
    assert (key, body) == (b"3", b"\xff")
    assert function.stats.hits == 0


@runs
async def test_reader_of_another_kind(twin: Any) -> None:
    """What is read without a connection of memcached is served and sent the other way alike."""
    function = Function(twin)

    async def read(key: bytes) -> Any:
        if key == b"3":
            raise NodeError("gone")
        return {b"1": b"value", b"2": b"\xff"}[key]

    function.read = read
    assert [await function(n) for n in (1, 2, 3)] == ["value", "otherwise", "otherwise"]
    assert function.otherwise[0] == (b"2", b"\xff")
    assert isinstance(function.otherwise[1][1], NodeError)
    assert function.stats.hits == 1


@runs
async def test_bypass_and_arguments(twin: Any) -> None:
    """In a bypass the function itself is called; wrong arguments are refused; nothing is sent in either case."""
    function = Function(twin)
    token = function.switch.set(True)
    assert await function(1, b="x") == "loaded (1,) {'b': 'x'}"
    function.switch.reset(token)
    with pytest.raises(TypeError, match="key field 'n' must be int, not str"):
        await function("1")
    await turn()
    assert function.line.sent == b""


@runs
async def test_connection_that_ends(twin: Any) -> None:
    """A request that a connection has not answered which had answered before is made again; guard: `died`."""
    function = Function(twin)
    tasks = [function.task(n) for n in range(2)]
    await turn()
    function.line.receive(hit(b"0"))
    function.line.mux.connection_lost(None)
    assert await tasks[0] == "0"
    assert await tasks[1] == "otherwise"
    assert function.line.retries == [b"1"]


@runs
async def test_connection_that_never_answered(twin: Any) -> None:
    """The error of a connection that has never answered goes the other way; the request is not made again."""
    function = Function(twin)
    task = function.task(1)
    await turn()
    function.line.mux.connection_lost(None)
    assert await task == "otherwise"
    assert isinstance(function.otherwise[0][1], NodeError)
    assert function.line.retries == []


@runs
async def test_cancelled_before_the_answer(twin: Any) -> None:
    """The answer of a cancelled call is read in its turn and given to the owner; guard: `_give` looks who waits."""
    function = Function(twin)
    first, second = function.task(1), function.task(2)
    await turn()
    first.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await first
    function.line.receive(hit(b"1") + hit(b"2"))
    assert await second == "2"
    assert function.line.orphans == [b"1"]
    assert function.stats.hits == 1


@runs
async def test_cancelled_after_the_answer(twin: Any) -> None:
    """A lease that came just before its task was cancelled is given back; guard: `abandon`."""
    function = Function(twin)
    task = function.task(1)
    await turn()
    function.line.receive(b"VA 0 c7 f0 t10 W\r\n\r\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [orphan] = function.line.orphans
    assert isinstance(orphan, Lease)
    assert function.otherwise == []


@runs
async def test_cancelled_on_the_other_way(twin: Any) -> None:
    """A cancellation reaches whatever a call that is no plain hit waits for."""
    function = Function(twin)
    function.hold = asyncio.Event()
    task = function.task(1)
    await turn()
    function.line.receive(b"EN\r\n")
    await turn()
    assert function.otherwise
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert function.line.orphans == []


@runs
async def test_time_limit(twin: Any) -> None:
    """`asyncio.wait_for` ends a call that is not answered; the next one is not mixed up with it."""
    function = Function(twin)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(function(1), 0.01)
    task = function.task(2)
    await turn()
    function.line.receive(hit(b"1") + hit(b"2"))
    assert await task == "2"
    assert function.line.orphans == [b"1"]


@runs
async def test_closed_amid_its_wait(twin: Any) -> None:
    """A coroutine that is closed while its request is on its way leaves the answer to the owner."""
    function = Function(twin)
    call = function(1)
    waiting = call.send(None)
    assert asyncio.isfuture(waiting)
    call.close()
    assert inspect.getcoroutinestate(call) == inspect.CORO_CLOSED
    function.line.receive(hit(b"1"))
    assert function.line.orphans == [b"1"]


@runs
async def test_each_task_has_its_context(twin: Any) -> None:
    """Tasks that go on together see their own context variables, before and after the answer."""
    function = Function(twin)
    number: ContextVar[int] = ContextVar("number")
    seen: list[tuple[bytes, int]] = []

    def decode(body: bytes) -> int:
        seen.append((body, number.get()))
        return number.get()

    async def call(n: int) -> tuple[int, int]:
        number.set(n)
        return await function(n), number.get()

    function.decode = decode
    tasks = [asyncio.create_task(call(n)) for n in range(3)]
    await turn()
    function.line.receive(hit(b"0") + hit(b"1") + hit(b"2"))
    assert await asyncio.gather(*tasks) == [(0, 0), (1, 1), (2, 2)]
    assert seen == [(b"0", 0), (b"1", 1), (b"2", 2)]


@pytest.mark.parametrize("twin", USABLE, ids=lambda twin: twin.__name__)
def test_interrupt_in_one_of_many(twin: Any) -> None:
    """Tasks whose answers came together go on though one of them is interrupted; guard: the rest of `_resume`."""
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Function, list["asyncio.Task[Any]"]]:
        function = Function(twin)
        return function, [function.task(n) for n in range(3)]

    def interrupted(body: bytes) -> str:
        if body == b"0":
            raise KeyboardInterrupt
        return body.decode()

    try:
        function, tasks = loop.run_until_complete(begin())
        loop.run_until_complete(turn())
        function.decode = interrupted
        function.line.receive(hit(b"0") + hit(b"1") + hit(b"2"))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.sleep(LIMIT))
        ended, _ = loop.run_until_complete(asyncio.wait(tasks[1:], timeout=LIMIT))
        assert {task.result() for task in ended} == {"1", "2"}
        with pytest.raises(KeyboardInterrupt):
            tasks[0].result()
    finally:
        loop.close()


@runs
async def test_two_tasks_and_one_call(twin: Any) -> None:
    """A call that a task waits for cannot be awaited by another one as well."""
    function = Function(twin)
    call = function(1)
    first = asyncio.create_task(call)
    await turn()
    with pytest.raises(RuntimeError, match="already"):
        await call
    function.line.receive(hit(b"1"))
    assert await first == "1"


@runs
async def test_many(twin: Any) -> None:
    """A batch gives the plain hits, and what it has found for the others; other shapes of arguments are not served."""
    function = Function(twin)
    answers = {b"1": b"one", b"2": "lease", b"3": b"\xff"}

    async def read_many(keys: list[bytes]) -> list[Any]:
        return [answers[key] for key in keys]

    function.read_many = read_many
    bound, values, rest = await function.call.many([1, (2,), 3])
    assert bound.driver is function.active
    assert values == {1: "one"}
    assert rest == [((2,), b"2", "lease"), (3, b"3", b"\xff")]
    assert function.stats.hits == 1
    assert await function.call.many([1, (2, 3)]) is None


def test_never_awaited() -> None:
    """A call that is not awaited says which function it was of, and asks for nothing."""

    async def main() -> None:
        cache = AsyncCache.from_url("memory://")

        @cache.cached("item:{n}", ttl=60)
        async def item(n: int) -> int:
            raise AssertionError("loaded")

        assert inspect.iscoroutinefunction(item)
        call = item(1)
        assert inspect.iscoroutine(call)
        with pytest.warns(RuntimeWarning, match=r"coroutine 'test_never_awaited.*\.item' was never awaited"):
            del call

    asyncio.run(main())
