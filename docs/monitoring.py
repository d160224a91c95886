"""What the daemon's page on monitoring draws from the code: its metrics, and its reasons for not being ready."""

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from leasecache.invalidation.figures import Figures
from leasecache.invalidation.readiness import FIXES


def metrics() -> str:
    """Return the daemon's own metrics as Markdown, by the names under which Prometheus knows them."""
    figures = Figures()
    rows = ["| metric | labels | kind | what |", "|---|---|---|---|"]
    labels = _labels(figures.registry)
    for metric in sorted(figures.registry.collect(), key=lambda metric: metric.name):
        if metric.name.startswith("leasecache_"):
            shown = " ".join(f"`{label}`" for label in labels[metric.name])
            rows.append(f"| `{shown_name(metric)}` | {shown} | {metric.type} | {metric.documentation} |")
    return "\n".join([*rows, ""])


def shown_name(metric: Metric) -> str:
    """Return the name of a metric as it stands in /metrics; a histogram has `_bucket`, `_sum` and `_count` besides."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def reasons() -> str:
    """Return the reasons of /readyz as Markdown."""
    rows = [f"| [`{code}`](runbook.md#{code}) | {fix} |" for code, fix in FIXES.items()]
    return "\n".join(["| reason | what the line advises |", "|---|---|", *rows, ""])


def _labels(registry: CollectorRegistry) -> dict[str, tuple[str, ...]]:
    collectors = list(registry._collector_to_names)
    return {getattr(one, "_name", ""): tuple(getattr(one, "_labelnames", ())) for one in collectors}
