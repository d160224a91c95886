"""Counters, histograms, snapshots, and what Prometheus is shown of them."""

import ast
import gc
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

import leasecache
from leasecache.errors import NodeError, NodeTimeout, ProtocolError
from leasecache.guard import Record, ring_mark
from leasecache.metrics import BOUNDS, FunctionStats, Histogram, NodeStats, Stats, quantile, snapshot
from leasecache.prometheus import LeasecacheCollector
from leasecache.stores.amemcached import AsyncMemcachedNode
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.memory import MemoryStore
from leasecache.stores.redis import RedisNode
from leasecache.stores.trust import Trust
from tests.fix_fork import in_a_child

PACKAGE = Path(leasecache.__file__).parent
THREADS, TIMES = 8, 20_000
COUNTERS = ("hits", "stale", "misses", "won", "stolen", "refused", "unguarded", "unleased", "misread", "failed")
KINDS = ("timeout", "broken", "protocol", "down")


def record(*names: str) -> Record:
    """A guard record that accepts the ring of these nodes."""
    return Record(generation=5, tenure=7, rings=frozenset([ring_mark(names)]), rules=frozenset())


class Node:
    """A node on the network, without the network."""

    def __init__(self, name: str = "10.0.0.1:11211", connections: tuple[int, int] = (3, 1)) -> None:
        self.name, self.errors, self.connections = name, NodeStats(), connections
        self.trust = Trust("shop", ring_mark([name]), name)
        self.trust.read(record(name).to_bytes())


class Shown:
    """A cache whose functions and nodes the test counts for."""

    def __init__(self, namespace: str | None = "shop", function: str = "app.get_media") -> None:
        self.function = SimpleNamespace(
            name=function, template=SimpleNamespace(text="media:{media_id}"), stats=FunctionStats()
        )
        self.node = Node()
        self.store: Any = SimpleNamespace(namespace=namespace, nodes=(self.node,))

    @property
    def counted(self) -> FunctionStats:
        """The counters of its function."""
        stats: FunctionStats = self.function.stats
        return stats

    def stats(self) -> Stats:
        """What `Cache.stats` returns."""
        return snapshot([self.function], self.store)


def families(registry: CollectorRegistry) -> dict[str, Metric]:
    """Scrape a registry and return what a scraper reads, by name."""
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def scrape(*caches: Shown) -> dict[str, Metric]:
    """Scrape caches through a registry of their own."""
    registry = CollectorRegistry()
    registry.register(LeasecacheCollector(*caches))
    return families(registry)


def samples(metric: Metric, **labels: str) -> dict[tuple[str, ...], float]:
    """Return the values of a family's samples that have these labels, by name and the labels that are left."""
    return {
        (sample.name, *(value for name, value in sample.labels.items() if name not in labels)): sample.value
        for sample in metric.samples
        if labels.items() <= sample.labels.items()
    }


def test_a_duration_falls_into_the_bucket_of_its_bound() -> None:
    """A bound belongs to its bucket, the next float above it to the next, and the last bucket has no bound."""
    for i, bound in enumerate(BOUNDS):
        histogram = Histogram()
        histogram.observe(bound)
        histogram.observe(bound * 1.0001)
        assert [n for n, count in enumerate(histogram.counts) if count] == [i, i + 1]
        assert histogram.total == pytest.approx(bound * 2.0001)


@pytest.mark.parametrize(
    ("durations", "q", "expected"),
    [
        ([], 0.5, None),
        ([0.002] * 10, 0.5, 0.00175),  # the middle of 0.001 to 0.0025
        ([0.0001] * 99 + [0.02], 0.99, 0.0005),
        ([0.0001] * 99 + [0.02], 1.0, 0.025),
        ([0.0001] * 90 + [3600.0] * 10, 0.99, 10.0),
        ([3600.0], 0.01, 10.0),
    ],
)
def test_quantiles(durations: list[float], q: float, expected: float | None) -> None:
    """A quantile is spread evenly within its bucket; above all bounds it is the last bound, of nothing it is None."""
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    assert quantile(q, histogram.counts) == (None if expected is None else pytest.approx(expected))


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that are made to change places as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(work: Callable[[], None]) -> None:
    """Run `work` in many threads at once."""
    barrier = threading.Barrier(THREADS)

    def run() -> None:
        barrier.wait()
        for _ in range(TIMES):
            work()

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("restless")
def test_threads_lose_no_count() -> None:
    """Counters, histograms and errors of nodes are exact among threads.

    The guard is that no call stands between read and write: `counts[bisect_left(…)] = counts[bisect_left(…)] + 1`
    loses counts here.
    """
    function, node = FunctionStats(), NodeStats()

    def count() -> None:
        function.hits += 1
        function.waited.observe(0.125)
        node.count(NodeTimeout("late"))

    together(count)
    all_of_them = THREADS * TIMES
    assert (function.hits, node.timeout) == (all_of_them, all_of_them)
    assert (sum(function.waited.counts), function.waited.total) == (all_of_them, all_of_them * 0.125)


def test_no_call_between_read_and_write() -> None:
    """Nobody writes `stats.hits += f()`: it reads, calls, and writes what may be out of date by then."""
    counters = {*COUNTERS, *KINDS}
    wrong = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if not {"invalidation", "lab"} & {*path.parts}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute) and node.target.attr in counters
        if any(isinstance(inner, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for inner in ast.walk(node.value))
    ]
    assert wrong == []


def test_several_probes_of_one_node() -> None:
    """A cluster is down as long as one of its nodes is, and since the first of these; one that has gone counts no more.

    Guard: a mark for each probe, which does not keep it alive.
    """
    stats, first, second = NodeStats(), Shown(), Shown()
    stats.mark(first)
    since = stats.down_since
    stats.mark(second)
    stats.mark(first)
    assert stats.down_since == since
    stats.unmark(first)
    assert stats.down_since is not None
    del second
    gc.collect()
    assert stats.down_since is None


def test_errors_by_kind() -> None:
    """Each class of error of a node is a kind of its own."""
    stats = NodeStats()
    for error in (NodeTimeout("x"), NodeTimeout("x"), ProtocolError("x"), NodeError("x")):
        stats.count(error)
    assert [getattr(stats, kind) for kind in KINDS] == [2, 1, 1, 0]


@pytest.mark.parametrize("kind", [MemcachedNode, AsyncMemcachedNode, RedisNode])
def test_nodes_on_the_network_are_watched(kind: Any) -> None:
    """No such node is taken for one that cannot fail."""
    [node] = snapshot([], SimpleNamespace(namespace=None, nodes=[kind("127.0.0.1:1")])).nodes
    assert node.errors == dict.fromkeys(KINDS, 0)


def test_a_forked_child_counts_from_nothing() -> None:
    """What the parent has counted it reports itself, a node that is down stays down. Guard: forget_after_fork."""
    cache = Shown()
    cache.counted.hits, cache.node.errors.timeout = 5, 3
    cache.node.errors.mark(cache)
    cache.counted.waited.observe(1)
    told = json.loads(in_a_child(lambda: json.dumps(cache.stats().to_json())))
    [function], [node] = told["functions"], told["nodes"]
    assert (function["hits"], function["waited"]["count"], node["errors"]["timeout"]) == (0, 0, 0)
    assert (node["up"], node["down_for"] > 0) == (False, True)
    assert (cache.stats().functions[0].hits, cache.stats().nodes[0].errors["timeout"]) == (5, 3)


def test_a_snapshot_is_json() -> None:
    """A snapshot has every counter, times with their bounds, and nodes; it goes through JSON unchanged."""
    cache = Shown()
    for number, name in enumerate(COUNTERS, 1):
        setattr(cache.counted, name, number)
    cache.counted.waited.observe(0.002)
    cache.node.errors.broken = 7
    told = cache.stats().to_json()
    assert json.loads(json.dumps(told)) == told
    [function], [node] = told["functions"], told["nodes"]
    assert {name: function[name] for name in COUNTERS} == {name: n for n, name in enumerate(COUNTERS, 1)}
    assert (function["name"], function["template"], told["namespace"]) == ("app.get_media", "media:{media_id}", "shop")
    assert (function["hit_ratio"], told["hit_ratio"]) == (0.5, 0.5)  # 1 hit and 2 stale of 6 calls
    waited = function["waited"]
    assert (waited["count"], waited["sum"], waited["bounds"]) == (1, 0.002, list(BOUNDS))
    assert (sum(waited["counts"]), waited["p50"], waited["p99"]) == (1, 0.00175, pytest.approx(0.002485))
    assert function["loaded"]["p50"] is None
    assert node == {
        "name": "10.0.0.1:11211",
        "errors": {"timeout": 0, "broken": 7, "protocol": 0, "down": 0},
        "up": True,
        "down_for": None,
        "connections_open": 3,
        "connections_idle": 1,
        "guard": "fresh",
    }


def test_a_snapshot_of_little() -> None:
    """A cache without calls has no hit ratio, one without a URL no nodes, and one in memory nothing that fails."""
    assert snapshot([], None).to_json() == {"namespace": None, "hit_ratio": None, "functions": [], "nodes": []}
    [node] = snapshot([], MemoryStore()).nodes
    assert (node.name, node.up, node.errors, node.connections_open) == ("memory", True, {}, 0)


EXPECTED = {
    "leasecache_calls": ("counter", ["cache", "function", "template", "result"]),
    "leasecache_leases_won": ("counter", ["cache", "function", "template"]),
    "leasecache_leases_stolen": ("counter", ["cache", "function", "template"]),
    "leasecache_fills_refused": ("counter", ["cache", "function", "template"]),
    "leasecache_calls_unguarded": ("counter", ["cache", "function", "template"]),
    "leasecache_loads_unleased": ("counter", ["cache", "function", "template"]),
    "leasecache_misread": ("counter", ["cache", "function", "template"]),
    "leasecache_load_errors": ("counter", ["cache", "function", "template"]),
    "leasecache_lease_wait_seconds": ("histogram", ["cache", "function", "template"]),
    "leasecache_load_seconds": ("histogram", ["cache", "function", "template"]),
    "leasecache_node_errors": ("counter", ["cache", "node", "kind"]),
    "leasecache_node_up": ("gauge", ["cache", "node"]),
    "leasecache_node_guarded": ("gauge", ["cache", "node"]),
    "leasecache_node_connections": ("gauge", ["cache", "node", "state"]),
}


def test_families() -> None:
    """A scraper finds every family with its type, a help text and its labels, and counters and units by their names."""
    scraped = scrape(Shown())
    told = {
        name: (family.type, {label for label in family.samples[0].labels if label != "le"})
        for name, family in scraped.items()
    }
    assert told == {name: (kind, set(labels)) for name, (kind, labels) in EXPECTED.items()}
    for name, family in scraped.items():
        assert family.documentation.strip()
        assert all(sample.name == f"{name}_total" for sample in family.samples if family.type == "counter")
        assert name.endswith("_seconds") == (family.type == "histogram")


def test_openmetrics_takes_them() -> None:
    """The stricter format parses, too, where the unit of each histogram is told apart from its name."""
    registry = CollectorRegistry()
    registry.register(LeasecacheCollector(Shown()))
    parsed = {family.name: family for family in parse_openmetrics(generate_openmetrics(registry).decode())}
    assert [name for name, family in parsed.items() if family.unit == "seconds"] == [
        "leasecache_lease_wait_seconds",
        "leasecache_load_seconds",
    ]


def test_every_counter_is_shown() -> None:
    """Each counter comes out under its name, none under another's."""
    cache = Shown()
    for number, name in enumerate(COUNTERS, 1):
        setattr(cache.counted, name, number)
    for number, name in enumerate(KINDS, 1):
        setattr(cache.node.errors, name, number)
    scraped = scrape(cache)
    mine = {"cache": "shop", "function": "app.get_media", "template": "media:{media_id}"}
    calls = samples(scraped["leasecache_calls"], **mine)
    assert [calls["leasecache_calls_total", result] for result in ("hit", "stale", "miss")] == [1, 2, 3]
    names = [
        "leases_won",
        "leases_stolen",
        "fills_refused",
        "calls_unguarded",
        "loads_unleased",
        "misread",
        "load_errors",
    ]
    shown = [samples(scraped[f"leasecache_{name}"], **mine)[f"leasecache_{name}_total",] for name in names]
    assert shown == [4, 5, 6, 7, 8, 9, 10]
    errors = samples(scraped["leasecache_node_errors"], cache="shop", node="10.0.0.1:11211")
    assert errors == {("leasecache_node_errors_total", kind): n for n, kind in enumerate(KINDS, 1)}
    connections = samples(scraped["leasecache_node_connections"], cache="shop", node="10.0.0.1:11211")
    assert set(connections.items()) == {
        (("leasecache_node_connections", "idle"), 1),
        (("leasecache_node_connections", "busy"), 2),
    }


def test_histograms_are_cumulative() -> None:
    """A bucket holds what is at most its bound, +Inf everything, and the sum is in seconds."""
    cache = Shown()
    for seconds in (0.0005, 0.002, 0.002, 60.0):
        cache.counted.waited.observe(seconds)
    shown = samples(
        scrape(cache)["leasecache_lease_wait_seconds"],
        cache="shop",
        function="app.get_media",
        template="media:{media_id}",
    )
    buckets = {labels[1]: value for labels, value in shown.items() if labels[0].endswith("_bucket")}
    assert [float(bound) for bound in buckets] == [*BOUNDS, float("inf")]
    assert list(buckets.values()) == [1, 1, *[3] * (len(BOUNDS) - 2), 4]
    assert shown["leasecache_lease_wait_seconds_count",] == 4
    assert shown["leasecache_lease_wait_seconds_sum",] == pytest.approx(60.0045)


def test_several_caches() -> None:
    """Caches are told apart by namespace; figures of one namespace, function and node are added up."""
    shop, again, ads = Shown("shop"), Shown("shop"), Shown(None)
    shop.counted.hits, again.counted.hits, ads.counted.hits = 1, 2, 4
    shop.counted.waited.observe(1)
    again.counted.waited.observe(1)
    shop.node.errors.timeout = again.node.errors.timeout = 1
    again.node.errors.mark(again)
    scraped = scrape(shop, again, ads)
    hits = samples(scraped["leasecache_calls"], result="hit")
    assert {labels[1]: value for labels, value in hits.items()} == {"shop": 3, "": 4}
    waits = samples(scraped["leasecache_lease_wait_seconds"], cache="shop", le="+Inf")
    assert list(waits.values()) == [2]
    up = samples(scraped["leasecache_node_up"], node="10.0.0.1:11211")
    assert up == {("leasecache_node_up", "shop"): 0, ("leasecache_node_up", ""): 1}
    timeouts = samples(scraped["leasecache_node_errors"], kind="timeout", cache="shop")
    assert list(timeouts.values()) == [2]


def test_guards() -> None:
    """A node tells what its guard record was when it was last read; a node that is not guarded tells nothing."""
    shop, ads = Shown("shop"), Shown("ads")
    ads.node.trust = None
    assert [cache.stats().nodes[0].guard for cache in (shop, ads)] == ["fresh", None]
    shown = samples(scrape(shop, ads)["leasecache_node_guarded"], node=shop.node.name)
    assert shown == {("leasecache_node_guarded", "shop"): 1}
    told = []
    for raw in (b"garbage", record("another").to_bytes(), None, record(shop.node.name).to_bytes()):
        shop.node.trust.read(raw)
        [value] = samples(scrape(shop)["leasecache_node_guarded"]).values()
        told.append((shop.stats().nodes[0].guard, value))
    assert told == [("absent", 0), ("foreign", 0), ("absent", 0), ("fresh", 1)]
    shop.node.trust = Trust("shop", b"ring", shop.node.name)
    assert shop.stats().nodes[0].guard == "unread"
    assert "leasecache_node_guarded" not in {f.name for f in scrape(shop).values() if f.samples}


def test_a_second_collector_is_refused() -> None:
    """A registry does not take metrics of the same names twice, before and after the first scrape."""
    registry = CollectorRegistry()
    registry.register(LeasecacheCollector(Shown()))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(LeasecacheCollector(Shown("ads")))
    assert families(registry).keys() == EXPECTED.keys()


def test_names_and_labels_are_escaped() -> None:
    """A template with quotes, backslashes or line ends comes back as it was."""
    cache = Shown()
    cache.function.template.text = 'a"b\\n\n:{x}'
    [label] = {sample.labels["template"] for sample in scrape(cache)["leasecache_leases_won"].samples}
    assert label == 'a"b\\n\n:{x}'


def test_prometheus_client_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client the collector's import says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "leasecache.prometheus")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'leasecache\[prometheus\]'"):
        importlib.import_module("leasecache.prometheus")
