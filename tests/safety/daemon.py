"""Long runs of the daemon from the command line: simulations one after the other, and storms."""

import random
import sys
import time
from collections import Counter

from tests.safety import storm
from tests.simulation import mutants
from tests.simulation.world import World

SAID_EVERY = 10  # s
STORM = 120.0  # s that one storm lasts before another begins with new servers


def simulate(seconds: float, first: int | None, mutant: str | None) -> int:
    """Run simulations for a time, or the one of seed `first` alone when `seconds` is 0; return 1 after a violation."""
    seed = random.SystemRandom().randrange(2**32) if first is None else first
    began, said, done = time.monotonic(), time.monotonic(), 0
    counts: Counter[str] = Counter()
    plan = None if mutant is None else mutants.MUTANTS[mutant].plan
    with mutants.mutated(mutant):
        while not done or time.monotonic() < began + seconds:
            report = World(seed + done, plan).run()
            counts.update(report.counts)
            if report.fault is not None:
                print(report.story(), file=sys.stderr)
                return 1
            done += 1
            if time.monotonic() > said + SAID_EVERY:
                said = time.monotonic()
                _say(
                    f"{said - began:5.0f} of {seconds:g} s: seeds {seed} to {seed + done - 1}, {counts['hits']:,} hits"
                )
    print(
        f"{done} simulations from seed {seed}, {counts['hits']:,} hits, {counts['kill_daemon']:,} kills, 0 violations"
    )
    return 0


def storms(seconds: float, first: int | None) -> int:
    """Run storms for a time, at a primary and at a standby in turn; return 1 after a violation."""
    seed = random.SystemRandom().randrange(2**32) if first is None else first
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        source = storm.SOURCES[seed % len(storm.SOURCES)]
        _say(f"seed {seed} at the {source}")
        report = storm.storm(storm.Options(seconds=min(left, STORM), seed=seed, source=source))
        if report.violations:
            print(report.story(), file=sys.stderr)
            return 1
        print(f"seed {seed}: {dict(report.counts)}, {dict(report.faults)}, 0 violations", flush=True)
        seed += 1
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
