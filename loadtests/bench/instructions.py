"""User-space instructions per call, counted by callgrind: whatever else the machine does, they stay the same."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from loadtests.bench.row import Effort, Missing, Outcome, Row, Tick
from loadtests.bench.servers import Servers

INSTRUCTIONS = "instructions"  # the figure
LENGTHS = (100, 1100)  # calls of the two runs, whose difference leaves out start and end
QUICK_LENGTHS = (20, 120)
WITHIN = 300  # s for one run; valgrind is some fifty times slower than the machine
ROOT = Path(__file__).parents[2]
VALGRIND = ("valgrind", "--tool=callgrind", "--log-fd=1", "--callgrind-out-file=/dev/null")
COLLECTED = re.compile(r"Collected : (\d+)")


class CountError(Exception):
    """A run under valgrind did not come to its end."""


def counted(row: Row, effort: Effort, tick: Tick) -> Outcome:
    """Count the instructions of one call of each side, in processes of their own."""
    outcome, figures = Outcome(), dict[str, list[float]]()
    if shutil.which(VALGRIND[0]) is None:
        absent = Missing(f"{VALGRIND[0]} is not installed", skipped=True)
        return Outcome(missing={side.name: absent for side in row.sides})
    low, high = QUICK_LENGTHS if effort.quick else LENGTHS
    with Servers() as servers, ThreadPoolExecutor(max_workers=2) as both:
        shared = (_name(row.right), servers.address("memcached"), str(effort.seed))
        for number, side in enumerate(row.sides, 1):
            try:
                fewer, more = both.map(partial(_count, _name(side.open), *shared), (low, high))
                figures[side.name] = [(more - fewer) / (high - low)]
            except CountError as error:
                outcome.missing[side.name] = Missing(str(error), skipped="not installed" in str(error))
            tick(number / len(row.sides))
    outcome.samples[INSTRUCTIONS] = figures
    return outcome


def _name(function: Callable[..., object]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _count(opening: str, right: str, address: str, seed: str, count: int) -> int:
    callee = (sys.executable, "-m", "loadtests.bench.callee", opening, right, address, seed, str(count))
    done = subprocess.run(
        [*VALGRIND, *callee],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    collected = COLLECTED.search(done.stdout)  # standard error is the callee's
    if done.returncode or collected is None:
        raise CountError((done.stderr.strip() or "valgrind said nothing").splitlines()[-1])
    return int(collected[1])
