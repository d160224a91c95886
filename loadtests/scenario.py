"""One run on the hot key: its row and options, and what is counted while it lasts."""

import time
from array import array
from typing import Any

from locust.env import Environment

from loadtests.base import record
from loadtests.options import Options
from loadtests.report import Report, percentile
from loadtests.row import HotRow
from loadtests.tally import Tally


class Scenario:
    """What the users of a run share."""

    def __init__(self, environment: Environment, options: Options, dsn: str) -> None:
        """Prepare the row. Raises psycopg.Error."""
        self.options = options
        self.tally = Tally()
        self.row = HotRow(dsn)
        self._environment = environment
        self._began = time.monotonic()
        self._times = array("d")  # ms; locust's own statistics round to whole ones
        environment.events.request.add_listener(self._answered)

    def load(self, row_id: int) -> int:
        """Read the row, slowly; a request of its own in locust's statistics."""
        self.tally.load_began()
        began = time.perf_counter()
        version = self.row.read(row_id, self.options.loader_ms / 1000)
        record(self._environment, "LOAD", "get_version", began)
        return version

    def close(self) -> Report:
        """End the run and return what it found."""
        seconds = time.monotonic() - self._began
        self._environment.events.request.remove_listener(self._answered)
        self.row.close()
        return self._report(seconds)

    def _answered(self, request_type: str, response_time: float, **_: Any) -> None:
        if request_type == "CACHE":
            self._times.append(response_time)

    def _report(self, seconds: float) -> Report:
        cold, *loads = self.tally.loads
        times = sorted(self._times)
        runner = self._environment.runner
        faults_of_the_test = sum(fault["count"] for fault in runner.exceptions.values()) if runner else 0
        return Report(
            leases=not self.options.without_leases,
            stale_for=self.options.stale_for,
            seconds=seconds,
            invalidations=len(loads),
            cold_loads=cold,
            loads=sum(loads),
            most_loads=max(loads, default=0),
            mean_loads=sum(loads) / max(len(loads), 1),
            requests=len(times),
            requests_per_second=len(times) / seconds,
            p50_ms=percentile(times, 0.5),
            p99_ms=percentile(times, 0.99),
            max_ms=max(times, default=0),
            failures=self._environment.stats.total.num_failures + faults_of_the_test,
            stale_served=self.tally.stale,
        )
