"""No caller gets what an invalidation before its call has made old: a short run, and what it takes to fail one."""

import random
import re
import time
from pathlib import Path

import pytest

from leasecache import Entry
from tests.safety.history import Event, timeline
from tests.safety.ledger import LAPS, Ledger
from tests.safety.mutants import MUTANTS
from tests.safety.oracle import SLACK, Oracle, Value
from tests.safety.run import Options, run


def seed() -> int:
    """Return dice for one run; the report names them."""
    return random.SystemRandom().randrange(2**32)


@pytest.mark.parametrize(("store", "nodes"), [("memcached", 2), ("redis", 1)])
def test_no_answer_is_older_than_an_acknowledged_invalidation(store: str, nodes: int) -> None:
    """Processes read and write while servers are killed, paused and cut off: every answer is what was promised.

    Guards: C on every lease-set, tokens in joining, acknowledgement after the answer, the window of stale values.
    """
    report = run(Options(seconds=6, least=2000, seed=seed(), store=store, nodes=nodes))
    assert not report.violations, report.story()
    assert report.counts["operations"] >= 2000, report.story()
    assert min(report.counts[what] for what in ("fresh", "loaded", "stored", "invalidations")) > 0, report.counts
    assert report.faults, report.story()


@pytest.mark.parametrize("mutant", ["set-without-token", "join-any-flight"])
def test_run_without_a_guard_is_found_out(mutant: str) -> None:
    """The run fails within seconds when one of these guards is missing, and tells the history of the row."""
    report = run(Options(seconds=60, seed=seed(), mutant=mutant))
    assert report.violations
    assert "acknowledged" in report.story()
    assert " invalidate " in report.story()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two rows; the second may be stale for 5 s in `oracle`."""
    return Ledger(tmp_path / "ledger", rows=2, workers=1)


@pytest.fixture
def oracle(ledger: Ledger) -> Oracle:
    """Judges by `ledger`."""
    return Oracle(ledger, {0: 0.0, 1: 5.0})


def test_oracle_binds_a_call_to_what_was_acknowledged_before_it(ledger: Ledger, oracle: Oracle) -> None:
    """The old version is good until the invalidation is acknowledged, and for calls that began before that."""
    before = ledger.mark(0)
    assert ledger.update(0) == 1
    assert oracle.fault(before, Value.encode(0, 0, 3), stale=False) is None
    assert oracle.fault(ledger.mark(0), Value.encode(0, 0, 3), stale=False) is None
    ledger.acknowledge(0, 1)
    assert oracle.fault(before, Value.encode(0, 0, 3), stale=False) is None
    assert "version 0 after" in (oracle.fault(ledger.mark(0), Value.encode(0, 0, 3), stale=True) or "")
    assert oracle.fault(ledger.mark(0), Value.encode(0, 1, 3), stale=False) is None


def test_oracle_knows_own_loads(ledger: Ledger, oracle: Oracle) -> None:
    """What a call has loaded itself is no older than the row was when the call began, acknowledged or not."""
    ledger.update(0)
    mark = ledger.mark(0)
    assert "began before" in (oracle.entry(mark, Entry(Value.encode(0, 0, 0), "loaded", None)) or "")
    assert oracle.entry(mark, Entry(Value.encode(0, 0, 0), "uncached", None)) is None
    assert oracle.entry(mark, Entry(Value.encode(0, 1, 0), "loaded", None)) is None


def test_oracle_counts_staleness_from_the_first_invalidation(ledger: Ledger, oracle: Oracle) -> None:
    """A stale value is good for stale_for after the next version's invalidation, however many follow."""
    for version in (1, 2, 3):
        assert ledger.update(1) == version
        ledger.acknowledge(1, version)
    mark = ledger.mark(1)
    first = ledger.acknowledged_at(1, 1) or 0
    in_time = mark._replace(began=first + int((5 + SLACK) * 1e9))
    too_late = mark._replace(began=first + int((5 + SLACK) * 1e9) + 1)
    assert oracle.fault(in_time, Value.encode(1, 0, 0), stale=True) is None
    assert "version 0 stale" in (oracle.fault(too_late, Value.encode(1, 0, 0), stale=True) or "")
    assert "version 0 after" in (oracle.fault(in_time, Value.encode(1, 0, 0), stale=False) or "")
    for _ in range(LAPS):
        ledger.update(1)
    assert "stale long" in (oracle.fault(in_time, Value.encode(1, 0, 0), stale=True) or "")


@pytest.mark.parametrize("value", [b"", b"1:0:0:", b"0:0:3:xx", b"0:0:0:x", b"0:0:x:", b"0:1:0:"])
def test_oracle_refuses_what_no_writer_wrote(ledger: Ledger, oracle: Oracle, value: bytes) -> None:
    """Another row's value, one cut short or mixed up, and one from the future are faults."""
    assert oracle.fault(ledger.mark(0), value, stale=False) is not None


def test_timeline_shows_one_row_and_what_concerned_all() -> None:
    """The history of a row has its own events and the faults, in order, and nothing that began after the violation."""
    now = time.monotonic_ns()
    events = [
        Event(now + 3, now + 2, "b", 0, "read", "second"),
        Event(now + 2, now + 1, "a", 0, "load", "first"),
        Event(now + 9, now, "faults", -1, "fault", "third"),
        Event(now + 2, now + 1, "a", 1, "read", "of another row"),
        Event(now + 20, now + 11, "a", 0, "read", "later"),
    ]
    lines = timeline(events, 0, now + 10)
    assert [line.split()[-1] for line in lines] == ["first", "second", "third"]


def test_page_names_guards_and_tests_that_exist() -> None:
    """Every test and mutant that docs/safety.md names is there; a name may be cut by an ellipsis."""
    root = Path(__file__).parents[2]
    page = (root / "docs/safety.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    files = {path.stem for path in (root / "tests").rglob("test_*.py")}
    for name, cut, rest in re.findall(r"`(test_\w+)(…?)(\w*)`", page):
        found = name in files or re.search(rf"def {name}" + (r"\w*" if cut else "") + rest + r"\b", code)
        assert found, name
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", page.split("### What it finds")[1].split("## The races")[0]))
    assert named == set(MUTANTS)
