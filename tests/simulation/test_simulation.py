"""The daemon in simulations: no guarded hit is older than W when its read began, and in the end all is as in the database."""

import random
import time

import pytest

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.world import World

SECONDS = 8.0
LEAST = 25  # simulations, however slow the machine


def test_no_guarded_hit_is_older_than_w() -> None:
    """Whatever is killed, cut off, delayed or lost in whatever order; the report names the seed, which repeats the run.

    Guard: all of those that `MUTANTS` takes out.
    """
    first = random.SystemRandom().randrange(2**32)
    deadline = time.monotonic() + SECONDS
    hits = done = 0
    while done < LEAST or time.monotonic() < deadline:
        report = World(first + done).run()
        assert report.fault is None, report.story()
        hits += report.counts["hits"]
        done += 1
    assert hits > 100 * done


def test_a_seed_repeats_its_simulation() -> None:
    """Two runs of a seed have the same history, to the last event."""
    first, second = World(7).run(), World(7).run()
    assert first.steps == second.steps
    assert first.history == second.history


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_missing_guard_is_found(mutant: str) -> None:
    """Each guard, taken out, breaks a promise within a bounded number of simulations."""
    with mutated(mutant):
        faults = [seed for seed in CATCHES[mutant] if World(seed).run().fault is not None]
    assert faults
