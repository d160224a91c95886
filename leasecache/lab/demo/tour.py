"""The whole tour: start, nine steps, a table."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from leasecache.lab.demo.caching import herd, hit_and_miss, stale_set
from leasecache.lab.demo.crossing import cross_invalidation, started, why_the_gate
from leasecache.lab.demo.likes import counting
from leasecache.lab.demo.outage import killed_daemon, why_the_guard
from leasecache.lab.demo.report import Step, show_step, show_table, to_json
from leasecache.lab.demo.stage import Stage, two_sites

STEPS: tuple[Callable[[Stage], Step], ...] = (
    started,
    hit_and_miss,
    herd,
    stale_set,
    cross_invalidation,
    why_the_gate,
    counting,
    why_the_guard,
    killed_daemon,
)


def run(*, version: int, as_json: bool, keep: bool) -> bool:
    """Run the tour; return whether every check held.

    `as_json` prints one JSON object instead of panels and table; progress goes to standard error either way. `keep`
    leaves the servers up, and tells how to reach them, until SIGINT or SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either signal cleans up
    console = Console(quiet=as_json)
    steps: list[Step] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        with _seeding() as progress:
            stage = stack.enter_context(two_sites(version, progress))
        for take in STEPS:
            steps.append(take(stage))
            show_step(console, steps[-1])
        _conclude(console, steps, as_json, time.monotonic() - began)
        if keep:
            _wait_for_the_end(stage)
    return all(step.holds for step in steps)


def _conclude(console: Console, steps: list[Step], as_json: bool, seconds: float) -> None:
    if as_json:
        sys.stdout.write(json.dumps(to_json(steps), indent=2) + "\n")
        sys.stdout.flush()
    show_table(console, steps)
    console.print(f"{sum(len(step.checks) for step in steps)} checks in {seconds:.0f} s")
    for step in steps:
        for check in step.checks:
            if not check.holds:
                console.print(f"[bold red]failed[/]: step {step.number}: {check.statement}")


@contextlib.contextmanager
def _seeding() -> Iterator[Callable[[str, int, int], object]]:
    """Show a bar per table while the data is made."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        starting = bars.add_task("starting servers", total=None)
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)
            if done == total:
                bars.update(starting, description="starting daemons")

        yield progress


def _wait_for_the_end(stage: Stage) -> None:
    """Print how to reach the servers and wait for ctrl-C."""
    console = Console(stderr=True)
    for site in (stage.dc1, stage.dc2):
        name = site.servers.name
        console.print(f"{name} postgres   {site.servers.postgres.dsn()}")
        console.print(f"{name} cache      {site.cache_url}")
        console.print(f"{name} daemon     http://{site.daemon.address}/  /metrics  /healthz  /readyz")
    console.print("ctrl-C ends them")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
