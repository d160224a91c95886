"""What one run of the herd found."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of one run; the loads of the cold key apart, times in ms."""

    leases: bool
    stale_for: float  # s
    seconds: float
    invalidations: int
    cold_loads: int  # before the first invalidation
    loads: int  # since
    most_loads: int  # for one invalidation
    mean_loads: float  # per invalidation
    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failures: int
    stale_served: int  # answers older than an invalidation that the cache had acknowledged when the call began

    def faults(self) -> list[str]:
        """Say what leases should have prevented; without leases a herd is what was asked for."""
        if not (self.requests and self.invalidations):
            return ["nothing was measured"]
        if not self.leases:
            return []
        most = max(self.cold_loads, self.most_loads)
        found = {
            f"{most} loads for one invalidation": most > 1,
            f"{self.failures} calls failed": self.failures > 0,
            f"{self.stale_served} stale answers, and none is allowed": self.stale_served > 0 and not self.stale_for,
        }
        return [fault for fault, holds in found.items() if holds]

    def table(self) -> Table:
        """Return the figures as a table."""
        table = Table("figure", "with leases" if self.leases else "without leases", title="the herd on one hot key")
        table.columns[1].justify = "right"
        for figure, value in self._rows():
            table.add_row(figure, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("measured", f"{self.seconds:.1f} s"),
            ("invalidations", f"{self.invalidations}"),
            ("loader calls, cold key", f"{self.cold_loads}"),
            ("loader calls, after invalidations", f"{self.loads}"),
            ("  most for one invalidation", f"{self.most_loads}"),
            ("  mean per invalidation", f"{self.mean_loads:.2f}"),
            ("requests", f"{self.requests:,}"),
            ("requests/s", f"{self.requests_per_second:,.0f}"),
            ("response p50", f"{self.p50_ms:.2f} ms"),
            ("response p99", f"{self.p99_ms:.2f} ms"),
            ("response max", f"{self.max_ms:.2f} ms"),
            ("failures", f"{self.failures}"),
            ("stale served", f"{self.stale_served:,}"),
        ]


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return the value below which `fraction` of the ordered values lie, 0 when there are none."""
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)] if ordered else 0.0
