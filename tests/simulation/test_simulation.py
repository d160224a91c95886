"""The daemon in simulations: no guarded hit is older than W was when its read began, and in the end all is healed."""

import random
import re
import time
from pathlib import Path

import pytest

from leasecache.guard import Record, guard_key
from leasecache.invalidation.keeper import Charter, Keeper
from leasecache.lease import Hit, Lease
from leasecache.stores.base import Outcome
from leasecache.stores.memory import MemoryStore
from tests.simulation.mutants import MUTANTS, search
from tests.simulation.world import World

SECONDS = 12.0
LEAST = 30  # simulations, however slow the machine


def test_no_guarded_hit_is_older_than_w() -> None:
    """Whatever is killed, cut off, delayed or lost in whatever order; the report names the seed, which repeats the run.

    Guards: those of `MUTANTS`.
    """
    first = random.SystemRandom().randrange(2**32)
    deadline = time.monotonic() + SECONDS
    hits = done = 0
    while done < LEAST or time.monotonic() < deadline:
        report = World(first + done).run()
        assert report.fault is None, report.story()
        hits += report.counts.get("hits", 0)
        done += 1
    assert hits > 20 * done


def test_a_seed_repeats_its_simulation() -> None:
    """Two runs of a seed have the same history, to the last event."""
    first, second = World(7).run(), World(7).run()
    assert first.history == second.history
    assert first.steps == second.steps


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_missing_guard_is_found(mutant: str) -> None:
    """Each guard, taken out, breaks a promise within a bounded number of simulations."""
    assert search(mutant, 0) is not None


def test_page_names_every_mutant() -> None:
    """docs/safety.md says what is found without each guard."""
    page = (Path(__file__).parents[2] / "docs/safety.md").read_text(encoding="utf-8")
    part = page.split("### What simulations find")[1].split("### Storms")[0]
    assert set(re.findall(r"\(`([a-z-]+)`\)", part)) == set(MUTANTS)


class Delayed(MemoryStore):
    """A node that lets others come between the reading of a record and its writing."""

    between: "Keeper | None" = None

    def run(self) -> str:
        """Say that a restart forgets everything."""
        return "-"

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store, after somebody else has written."""
        other, self.between = self.between, None
        if other is not None:
            other.write(float("inf"), new=True)
        return super().lease_set(lease, flags, body, ttl)


def test_a_late_record_does_not_revive_a_generation() -> None:
    """A record that arrives behind a successor's is refused. Guard: the CAS with every write of a record."""
    node = Delayed()
    charter = Charter(key=guard_key("shop"), ttl=60.0, rings=frozenset({b"r"}), rules=frozenset({b"f"}))
    old, new = Keeper(node, charter), Keeper(node, charter)
    for tenure, keeper in enumerate((old, new), 1):
        keeper.begin(tenure, 0.0, known=False)
    first = old.write(float("inf"))
    assert first is not None
    old.wrote(first, 0.0)
    node.between = new
    old.write(float("inf"))
    found = node.look(charter.key)
    assert isinstance(found, Hit)
    record = Record.from_bytes(found.value)
    assert record is not None
    assert record.generation != first.generation
