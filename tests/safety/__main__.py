"""Run the safety run from a command line: python -m tests.safety --seconds 300."""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.safety.daemon import simulate, storms
from tests.safety.mutants import MUTANTS
from tests.safety.run import STORES, Options, Report, run
from tests.simulation.mutants import MUTANTS as SIMULATED

RUNS = ("leases", "simulation", "storm")
SAID_EVERY = 10  # s


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, say how it went, and return 1 if a promise was broken."""
    parsed = parse(arguments)
    if parsed.run == "simulation":
        return simulate(parsed.seconds, parsed.seed, parsed.mutant)
    if parsed.run == "storm":
        return storms(parsed.seconds, parsed.seed)
    options = Options(
        seconds=parsed.seconds,
        seed=parsed.seed if parsed.seed is not None else random.SystemRandom().randrange(2**32),
        processes=parsed.processes,
        nodes=1 if parsed.store == "redis" else parsed.nodes,
        store=parsed.store,
        mutant=parsed.mutant,
    )
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    report = run(options, Progress(options.seconds))
    print(json.dumps(figures(report), indent=2) if parsed.json else summary(report))
    if report.violations:
        print(report.story(), file=sys.stderr)
    return 1 if report.violations else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a wrong one ends the process."""
    parser = argparse.ArgumentParser(prog="safety", description="Look for a value that is too old.")
    parser.add_argument("--run", choices=RUNS, default="leases", help="what to look at (leases)")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long (300)")
    parser.add_argument("--seed", type=int, help="of the dice; the interleaving is the machine's (random)")
    parser.add_argument("--processes", type=int, default=3, help="that read and write (3)")
    parser.add_argument("--nodes", type=int, default=2, help="of memcached; all but the first behind a proxy (2)")
    parser.add_argument("--store", choices=sorted(STORES), default="memcached", help="what to run (memcached)")
    parser.add_argument("--mutant", help="take a guard out, one of docs/safety.md; the run must fail then")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parsed = parser.parse_args(arguments)
    known = {"leases": [*MUTANTS], "simulation": [*SIMULATED], "storm": []}[parsed.run]
    if parsed.mutant is not None and parsed.mutant not in known:
        parser.error(f"--mutant: {parsed.run} has {', '.join(sorted(known)) or 'none'}")
    return parsed


class Progress:
    """Says on standard error how far a run has come."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + SAID_EVERY

    def __call__(self, passed: float, operations: int, invalidations: int, faults: Counter[str]) -> None:
        if time.monotonic() < self._next:
            return
        self._next += SAID_EVERY
        print(
            f"{passed:5.0f} of {self._seconds:g} s: {operations:,} operations, {invalidations:,} invalidations, "
            f"{sum(faults.values())} faults",
            file=sys.stderr,
            flush=True,
        )


def figures(report: Report) -> dict[str, object]:
    """Return the report's numbers."""
    return {
        "seed": report.seed,
        "seconds": round(report.seconds, 1),
        "violations": report.violations,
        "counts": dict(sorted(report.counts.items())),
        "faults": dict(sorted(report.faults.items())),
    }


def summary(report: Report) -> str:
    """Return the report as lines of text."""
    lines = [f"{report.seconds:.0f} s, seed {report.seed}"]
    for counts in (report.counts, report.faults):
        lines += [f"{count:>12,}  {what}" for what, count in sorted(counts.items())]
    return "\n".join([*lines, f"{len(report.violations):>12,}  violations"])


if __name__ == "__main__":
    sys.exit(main())
