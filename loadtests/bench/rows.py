"""The rows of the bench. To add one: a module with its sides, and a `Row` here."""

from collections.abc import Callable
from functools import partial
from typing import Any

from loadtests.bench import aio, batches, guarded, herd, hits, keys, memory_hits, redis_hits, rivals, stream
from loadtests.bench.instructions import INSTRUCTIONS, counted
from loadtests.bench.row import OURS, Figure, Goal, Role, Row, Side
from loadtests.bench.slices import TIME, timed

Open = Callable[..., Any]


def floor(name: str, opened: Open) -> Side:
    """Name the side that the others are divided by."""
    return Side(name, Role.FLOOR, opened)


def ours(opened: Open, name: str = OURS) -> Side:
    """Name a side of ours."""
    return Side(name, Role.OURS, opened)


def rival(name: str, opened: Open) -> Side:
    """Name a rival."""
    return Side(name, Role.RIVAL, opened)


def times(goals: tuple[Goal, ...], of: str | None = None, unit: str = "µs") -> tuple[Figure, ...]:
    """Say that a row measures time, divided by that of one side."""
    return (Figure(name=TIME, unit=unit, floor=of, goals=goals),)


P1 = Row(
    name="P1",
    work="a hit on memcached, 200 bytes",
    sides=(
        floor("raw socket", hits.floor),
        ours(hits.ours),
        rival("pymemcache get", hits.pymemcache_get),
        rival("pymemcache get, time limit", partial(hits.pymemcache_get, timeout=rivals.TIME_LIMIT)),
        rival("pylibmc get", hits.pylibmc_get),
        rival("meta-memcache get_or_lease", hits.meta_memcache_get),
        rival("dogpile.cache on pymemcache", hits.dogpile_on_pymemcache),
        rival("dogpile.cache on pylibmc", hits.dogpile_on_pylibmc),
    ),
    figures=times(
        of="raw socket",
        goals=(
            Goal(at_most=1.05, of=("raw socket",)),
            Goal(at_most=1.0, of=("pylibmc get",)),
            Goal(at_most=0.5, of=("dogpile.cache on pymemcache",)),
            Goal(at_most=0.5, of=("dogpile.cache on pylibmc",)),
        ),
    ),
    measure=timed,
    right=hits.has_value,
)

P1T = Row(
    name="P1t",
    work="a hit decoded into a dataclass",
    sides=(floor("raw socket + msgspec", hits.floor_decoded), ours(hits.ours_decoded)),
    figures=times(of="raw socket + msgspec", goals=(Goal(at_most=1.05, of=("raw socket + msgspec",)),)),
    measure=timed,
    right=hits.has_media,
)

P1I = Row(
    name="P1i",
    work="user-space instructions of a hit",
    sides=(
        floor("raw socket", hits.floor),
        ours(hits.ours),
        rival("pymemcache get", hits.pymemcache_get),
        rival("dogpile.cache on pymemcache", hits.dogpile_on_pymemcache),
    ),
    figures=(
        Figure(
            name=INSTRUCTIONS,
            unit="",
            floor="raw socket",
            goals=(Goal(at_most=0.35, of=("pymemcache get",)),),
        ),
    ),
    measure=counted,
    right=hits.has_value,
)

P1G = Row(
    name="P1g",
    work="a guarded hit, the guard record read with it",
    sides=(floor("raw socket", guarded.floor), ours(guarded.ours), ours(hits.ours, "leasecache, unguarded")),
    figures=times(of="raw socket", goals=(Goal(at_most=1.08, of=("raw socket",)),)),
    measure=timed,
    right=hits.has_value,
)

P1GI = Row(
    name="P1gi",
    work="user-space instructions of a guarded hit",
    sides=(floor("raw socket", guarded.floor), ours(guarded.ours), ours(hits.ours, "leasecache, unguarded")),
    figures=(Figure(name=INSTRUCTIONS, unit="", floor="raw socket"),),
    measure=counted,
    right=hits.has_value,
)

P2 = Row(
    name="P2",
    work="100 hits in one batch, per key",
    sides=(
        floor("raw pipeline", batches.floor),
        ours(batches.ours),
        ours(batches.store_alone, "leasecache, store alone"),
        rival("pymemcache get_many", batches.pymemcache_get_many),
        rival("pylibmc get_multi", batches.pylibmc_get_multi),
        rival("meta-memcache multi_get", batches.meta_memcache_multi_get),
    ),
    figures=times(of="raw pipeline", goals=(Goal(at_most=1.5, of=("raw pipeline",)),)),
    measure=timed,
    right=batches.has_all,
    per=len(batches.IDS),
)

P3 = Row(
    name="P3",
    work="a hit on Redis, 200 bytes",
    sides=(
        floor("redis-py get", redis_hits.floor),
        ours(redis_hits.ours),
        rival("dogpile.cache", redis_hits.dogpile),
        rival("cashews", redis_hits.cashews),
    ),
    figures=times(of="redis-py get", goals=(Goal(at_most=1.1, of=("redis-py get",)),)),
    measure=timed,
    right=memory_hits.same,
)

P3G = Row(
    name="P3g",
    work="a guarded hit on Redis, the guard record read with it",
    sides=(
        floor("redis-py mget", redis_hits.guarded_floor),
        ours(redis_hits.guarded),
        ours(redis_hits.ours, "leasecache, unguarded"),
    ),
    figures=times(of="redis-py mget", goals=(Goal(at_most=1.1, of=("redis-py mget",)),)),
    measure=timed,
    right=redis_hits.has_value,
)

P4 = Row(
    name="P4",
    work="a hit in memory, 200 bytes",
    sides=(
        floor("functools.lru_cache", memory_hits.floor),
        ours(memory_hits.ours),
        rival("dogpile.cache", memory_hits.dogpile),
        rival("cashews", memory_hits.cashews),
    ),
    figures=times(of="functools.lru_cache", goals=(Goal(at_most=1.0),)),
    measure=timed,
    right=memory_hits.same,
)

P5 = Row(
    name="P5",
    work="rendering a key",
    sides=(
        floor("bytes % int", keys.floor),
        ours(keys.ours),
        ours(keys.key_method, "leasecache, .key()"),
        rival("f-string, encode, check", keys.checked_string),
    ),
    figures=times(of="bytes % int", goals=(Goal(at_most=1.0, of=("bytes % int",)),)),
    measure=timed,
    right=keys.is_key,
)


def stampede(loads: int, failed: int = 0, goals: tuple[Goal, ...] = ()) -> tuple[Figure, ...]:
    """Say that a row measures herds, in which so many loads and failed calls are right; `goals` are of the p99."""
    return (
        Figure(name=herd.LOADS, unit="", goals=(Goal(at_most=loads, worst=True),)),
        Figure(name=herd.FAILED, unit="", goals=(Goal(at_most=failed, worst=True),)),
        Figure(name=herd.P50, unit="ms"),
        Figure(name=herd.P99, unit="ms", goals=goals),
    )


P6 = Row(
    name="P6",
    work="500 callers in 8 processes, a cold key, a load of 50 ms",
    sides=(
        floor("the loader alone", herd.floor),
        ours(herd.ours),
        rival("meta-memcache", herd.meta_memcache),
        rival("dogpile.cache", herd.dogpile),
        rival("no lease", herd.no_lease),
    ),
    figures=stampede(loads=1, goals=(Goal(at_most=20, over="the loader alone"),)),
    measure=herd.Stampedes(herd.COLD),
)

P6K = Row(
    name="P6k",
    work="the same, its winner killed; beyond lease and load",
    sides=(ours(herd.patient),),
    figures=stampede(loads=1),
    measure=herd.Stampedes(herd.KILLED),
)

P6S = Row(
    name="P6s",
    work="the same, a load of 1.5 s under leases of 1 s",
    sides=(ours(herd.patient),),
    figures=stampede(loads=2),
    measure=herd.Stampedes(herd.SLOW),
)

P6R = Row(
    name="P6r",
    work="the same, every second load raises; beyond two loads",
    sides=(ours(herd.ours),),
    figures=stampede(loads=2, failed=1),
    measure=herd.Stampedes(herd.RAISING),
)

CLIENTS = ("emcache get", "emcache get, autobatching", "memcachio get", "aiomcache get")

P7 = Row(
    name="P7",
    work="hits of 200 asyncio tasks, per hit",
    sides=(
        ours(aio.ours),
        rival("emcache get", aio.emcache),
        rival("emcache get, autobatching", partial(aio.emcache, autobatching=True)),
        rival("memcachio get", aio.memcachio),
        rival("aiomcache get", aio.aiomcache),
    ),
    figures=times(goals=(Goal(at_most=0.5, of=CLIENTS),)),
    measure=partial(timed, slice_for=0.05),  # many calls for each start of 200 tasks
    right=aio.has_all,
    per=len(aio.IDS),
)

P7U = Row(
    name="P7u",
    work="the same on uvloop",
    sides=(
        ours(partial(aio.ours, loop_of=aio.uvloop)),
        rival("emcache get", partial(aio.emcache, loop_of=aio.uvloop)),
        rival("emcache get, autobatching", partial(aio.emcache, autobatching=True, loop_of=aio.uvloop)),
        rival("memcachio get", partial(aio.memcachio, loop_of=aio.uvloop)),
        rival("aiomcache get", partial(aio.aiomcache, loop_of=aio.uvloop)),
    ),
    figures=times(goals=()),
    measure=P7.measure,
    right=aio.has_all,
    per=len(aio.IDS),
)

P7G = Row(
    name="P7g",
    work="guarded hits of 200 asyncio tasks, per hit",
    sides=(
        floor("leasecache, unguarded", aio.ours),
        ours(aio.guarded),
        ours(partial(aio.ours, loop_of=aio.uvloop), "leasecache, unguarded, uvloop"),
        ours(partial(aio.guarded, loop_of=aio.uvloop), "leasecache, uvloop"),
    ),
    figures=times(of="leasecache, unguarded", goals=()),
    measure=P7.measure,
    right=aio.has_all,
    per=len(aio.IDS),
)

RECEIVER = "pg_recvlogical -f /dev/null"
DRAINED = (
    Figure(name=stream.TIME, unit="µs", floor=RECEIVER, goals=(Goal(at_most=1 / 0.9, of=(RECEIVER,)),)),
    Figure(name=stream.CPU, unit="µs", floor=RECEIVER, goals=(Goal(at_most=1.0),)),
)

P8 = Row(
    name="P8",
    work="from the slot to acknowledged invalidation, transactions of 10,000 rows",
    sides=(
        floor(RECEIVER, stream.floor),
        ours(stream.ours),
        rival("psycopg2 read_message, doing nothing", stream.psycopg2),
    ),
    figures=DRAINED,
    measure=stream.Draining(rows=500_000),
)

P8S = Row(
    name="P8s",
    work="the same, a transaction for each row",
    sides=P8.sides,
    figures=DRAINED,
    measure=stream.Draining(rows=200_000, single=True),
)

NOTING = "a reader that only notes the time"
P9 = Row(
    name="P9",
    work="from commit to invalid key, 2,000 transactions per second",
    sides=(
        floor(NOTING, lambda: "minimal"),
        ours(lambda: "daemon"),
        rival("a reader that asks the gate and deletes, checking nothing", lambda: "asking"),
    ),
    figures=(
        Figure(name=stream.P50, unit="ms", floor=NOTING),
        Figure(name=stream.P50_REST, unit="ms", floor=NOTING, goals=(Goal(at_most=1.3, of=(NOTING,)),)),
        Figure(name=stream.P99, unit="ms", goals=(Goal(at_most=5),)),
    ),
    measure=stream.Following(),
)

ROWS = (P1, P1T, P1I, P1G, P1GI, P2, P3, P3G, P4, P5, P6, P6K, P6S, P6R, P7, P7U, P7G, P8, P8S, P9)
