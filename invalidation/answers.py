"""What the status server answers: the page, the same as JSON, metrics, health and readiness."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from leasecache.invalidation.look import POLICY
from leasecache.invalidation.page import page
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.summary import summary

TEXT = "text/plain; charset=utf-8"
_VARY = (("Vary", "Accept"),)
_HTML = (*_VARY, ("Content-Security-Policy", POLICY))


class Page(NamedTuple):
    """One answer."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class _Scrape:
    """A registry without the time at which each series began, which would double their number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def answer(path: str, monitor: Monitor, accept: str = "") -> Page:
    """Return what is at `path`; `accept` is the request's Accept header."""
    if path == "/metrics":
        return Page(200, CONTENT_TYPE_LATEST, generate_latest(_Scrape(monitor.figures.registry)))
    if path == "/healthz":
        return Page(200, TEXT, b"ok\n")
    if path == "/readyz":
        reasons = monitor.unready()
        return Page(503 if reasons else 200, TEXT, ("\n".join(reasons) or "ready").encode() + b"\n")
    if path == "/" and "application/json" not in accept:
        return Page(200, "text/html; charset=utf-8", page(summary(monitor.state)), _HTML)
    if path in ("/", "/status.json"):
        return Page(200, "application/json", json.dumps(summary(monitor.state), indent=2).encode() + b"\n", _VARY)
    return Page(404, TEXT, b"there are /, /status.json, /metrics, /healthz and /readyz\n")
