"""The figures of caches as Prometheus metrics: `REGISTRY.register(LeasecacheCollector(cache))`.

Nothing is kept twice: each scrape takes a snapshot of what `cache.stats()` tells.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from leasecache.errors import ConfigError
from leasecache.metrics import FunctionFigures, NodeFigures, Stats, Times

try:
    from prometheus_client import Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
    from prometheus_client.utils import floatToGoString
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"leasecache.prometheus needs {missing.name}: pip install 'leasecache[prometheus]'", name=missing.name
    ) from None

_FUNCTION = ("cache", "function", "template")
_NODE = ("cache", "node")
_RESULTS = {"hit": "hits", "stale": "stale", "miss": "misses"}
_COUNTERS = {
    "won": ("leases_won", "Leases won, those stolen and those to refresh a value in hand too"),
    "stolen": ("leases_stolen", "Leases won by taking them from a holder that took too long"),
    "refused": ("fills_refused", "Values loaded under a lease that the store refused"),
    "unguarded": ("calls_unguarded", "Calls that did without the cache, because no daemon vouched for the node"),
    "unleased": ("loads_unleased", "Loads without a lease, whose value is not stored"),
    "misread": ("misread", "Stored values of another type or version, dropped"),
    "failed": ("load_errors", "Loads that raised"),
}

Functions = dict[tuple[str, ...], list[FunctionFigures]]
Nodes = dict[tuple[str, ...], list[NodeFigures]]


class Observed(Protocol):
    """A Cache or AsyncCache."""

    def stats(self) -> Stats: ...


class LeasecacheCollector(Collector):
    """Shows one or several caches of this process to one registry; the label `cache` is the namespace.

    Figures with the same labels are added up, those of a Cache and an AsyncCache of one namespace for example. A
    registry takes one such collector: a second one is refused with ValueError, for it would repeat the metrics' names.
    """

    def __init__(self, cache: Observed, *others: Observed) -> None:
        """Ask nothing of the caches before the first scrape; they need not be configured yet."""
        self._caches = (cache, *others)

    def describe(self) -> Iterator[Metric]:
        """Return the families without samples; the registry compares their names with those that it has."""
        return _families({}, {})

    def collect(self) -> Iterator[Metric]:
        """Return the families with a sample for each function and node."""
        functions: Functions = defaultdict(list)
        nodes: Nodes = defaultdict(list)
        for stats in filter(None, map(_stats, self._caches)):
            namespace = stats.namespace or ""
            for function in stats.functions:
                functions[namespace, function.name, function.template].append(function)
            for node in stats.nodes:
                nodes[namespace, node.name].append(node)
        return _families(functions, nodes)


def _stats(cache: Observed) -> Stats | None:
    try:
        return cache.stats()
    except ConfigError:  # no URL yet: nothing has happened
        return None


def _families(functions: Functions, nodes: Nodes) -> Iterator[Metric]:
    yield _calls(functions)
    for field, (name, text) in _COUNTERS.items():
        counter = CounterMetricFamily(f"leasecache_{name}", text, labels=_FUNCTION)
        for labels, same in functions.items():
            counter.add_metric(labels, sum(getattr(one, field) for one in same))
        yield counter
    yield _times("lease_wait", "Time that calls waited for somebody else's load", "waited", functions)
    yield _times("load", "Time that loads took", "loaded", functions)
    yield _errors(nodes)
    yield _up(nodes)
    yield _guarded(nodes)
    yield _connections(nodes)


def _calls(functions: Functions) -> Metric:
    text = "Calls by what they found at once: a fresh value, a stale one, or neither"
    family = CounterMetricFamily("leasecache_calls", text, labels=(*_FUNCTION, "result"))
    for labels, same in functions.items():
        for result, field in _RESULTS.items():
            family.add_metric((*labels, result), sum(getattr(one, field) for one in same))
    return family


def _times(name: str, text: str, field: str, functions: Functions) -> Metric:
    family = HistogramMetricFamily(f"leasecache_{name}", text, labels=_FUNCTION, unit="seconds")
    for labels, same in functions.items():
        times: Sequence[Times] = [getattr(one, field) for one in same]
        counts = accumulate(map(sum, zip(*(one.counts for one in times), strict=True)))
        bounds = [*map(floatToGoString, times[0].bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), sum(one.sum for one in times))
    return family


def _errors(nodes: Nodes) -> Metric:
    text = "Failed exchanges with a node by kind: timeout, broken, protocol; down: not asked, as it is marked down"
    family = CounterMetricFamily("leasecache_node_errors", text, labels=(*_NODE, "kind"))
    for labels, same in nodes.items():
        for kind in same[0].errors:
            family.add_metric((*labels, kind), sum(one.errors[kind] for one in same))
    return family


def _up(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily("leasecache_node_up", "0 while this process leaves a failed node alone", labels=_NODE)
    for labels, same in nodes.items():
        family.add_metric(labels, float(all(one.up for one in same)))
    return family


def _guarded(nodes: Nodes) -> Metric:
    text = "1 while the guard record of a guarded node, as it was last read, vouches for it"
    family = GaugeMetricFamily("leasecache_node_guarded", text, labels=_NODE)
    for labels, same in nodes.items():
        if guards := [one.guard for one in same if one.guard not in (None, "unread")]:
            family.add_metric(labels, float(all(guard == "fresh" for guard in guards)))
    return family


def _connections(nodes: Nodes) -> Metric:
    family = GaugeMetricFamily("leasecache_node_connections", "Open connections to a node", labels=(*_NODE, "state"))
    for labels, same in nodes.items():
        idle = sum(one.connections_idle for one in same)
        family.add_metric((*labels, "idle"), idle)
        busy = sum(one.connections_open for one in same) - idle
        family.add_metric((*labels, "busy"), max(busy, 0))  # one may come back between the two counts
    return family
