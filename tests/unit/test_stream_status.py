"""Readiness, and the log's two formats."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator

import pytest

from leasecache.errors import NodeError
from leasecache.invalidation import logs
from leasecache.invalidation.answers import answer
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.readiness import FIXES
from leasecache.invalidation.status import READY_WITHIN, Monitor
from leasecache.invalidation.stream import Loss, Touched, Transaction


def streaming() -> Monitor:
    """Return a monitor of a daemon that streams."""
    monitor = Monitor()
    monitor.connected("snapshot", "a test")
    return monitor


def test_ready_while_streaming() -> None:
    """A daemon is ready when it streams and nothing holds."""
    assert answer("/readyz", Monitor()).status == 503
    assert answer("/readyz", streaming()).status == 200
    monitor = streaming()
    monitor.disconnected("gone", 1.0)
    assert "not-streaming: gone" in monitor.unready()[0]


def test_not_ready_while_something_holds_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate or node that has held for longer than the limit ends readiness; a short hold does not."""
    monitor, now = streaming(), time.monotonic()
    monitor.gate_held(now, 1)
    monitor.node_failed("n", NodeError("gone"))
    assert monitor.unready() == []
    monkeypatch.setattr(time, "monotonic", lambda: now + READY_WITHIN + 5)
    assert [reason.partition(":")[0] for reason in monitor.unready()] == ["gate-held", "node-down"]
    monitor.state.limit = READY_WITHIN + 10
    assert monitor.unready() == []
    monitor.state.limit = READY_WITHIN
    monitor.gate_held(None, 0)
    monitor.node_recovered("n")
    assert monitor.unready() == []


@pytest.mark.parametrize("reason", ["truncate", "toast", "identity", "column", "value"])
def test_a_loss_ends_readiness_for_good(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Changes that were not served stay a reason, are counted, and are logged once."""
    monitor = streaming()
    touched = Touched()
    touched.losses[Loss(reason, "public.media", "get_media")] += 2
    for _ in range(3):
        monitor.received(Transaction(xids=(1,), end_lsn=1, committed_at=0.0, touched=touched))
    assert f"6 changes of public.media not served ({reason})" in monitor.unready()[0]
    assert [record.getMessage() for record in caplog.records] == ["unserved"]


def test_a_failing_node_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A node that goes away is one line, however often it is tried, and one when it is back."""
    monitor = streaming()
    caplog.set_level(logging.INFO)
    monitor.node_failed("n", NodeError("gone"))
    monitor.node_failed("n", NodeError("gone"))
    monitor.node_recovered("n")
    assert [record.getMessage() for record in caplog.records] == ["node-down", "node-up"]


HARD = (
    "",
    "a b",
    '"',
    "x\ny\r\tz",
    "\\n",
    "a=b",
    "\x1b[31m",
    "\u2028\x85\x0b\x7f",
    "täg 表 🙂",
    "\udce4",
    "a" * 10_000,
)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], list[str]]]:
    """Begin to log in a form; what is returned then are the lines so far."""
    log = logging.getLogger("leasecache.daemon")
    before = log.handlers[:], log.propagate, log.level

    def written(form: str) -> list[str]:
        if not log.handlers or log.propagate:
            logs.configure(form, "info")
        return capsys.readouterr().err.splitlines()

    yield written
    log.handlers[:], log.propagate = before[0], before[1]
    log.setLevel(before[2])


def taken_apart(line: str) -> dict[str, str]:
    """Return the fields of a logfmt line."""
    found = re.findall(r'([\w]+)=("(?:[^"\\]|\\.)*"|[^" ]+)(?: |$)', line)
    assert " ".join(f"{name}={value}" for name, value in found) == line
    return {name: json.loads(value) if value.startswith('"') else value for name, value in found}


@pytest.mark.parametrize("value", HARD)
@pytest.mark.parametrize("form", logs.FORMATS)
def test_log_lines(form: str, value: str, lines: Callable[[str], list[str]]) -> None:
    """A line is one line of printable text whatever is logged, and can be taken apart again."""
    lines(form)
    logs.event(logging.INFO, "happened", where=value, number=1)
    logs.event(logging.DEBUG, "not-shown")
    (line,) = lines(form)
    assert line.isprintable()
    line.encode()
    fields = json.loads(line) if form == "json" else taken_apart(line)
    assert (fields["level"], fields["event"], fields["where"], fields["number"]) == (
        "info",
        "happened",
        value,
        1 if form == "json" else "1",
    )


def test_logfmt_stays_legible(lines: Callable[[str], list[str]]) -> None:
    """What needs no quotes has none, letters of any language among it."""
    lines("logfmt")
    logs.event(logging.INFO, "happened", where="täg/表", quote='say "a"')
    assert lines("logfmt")[0].endswith('level=info event=happened where=täg/表 quote="say \\"a\\""')


def test_each_change_of_state_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """However often the loop tells the same, the log has one line when something changes."""
    caplog.set_level(logging.INFO)
    monitor = streaming()
    finding = Finding(code="identity", table="t", rule="f", consequence="c")
    for _ in range(3):
        monitor.guarded("n", "fresh", 7)
        monitor.journaled("n", 5, 50)
        monitor.gap("slot is gone")
        monitor.drifted([finding])
    for _ in range(3):
        monitor.journal_failed("n", OSError("full"))
    for _ in range(3):
        monitor.journaled("n", 0, 0)
    monitor.recovered(1.5)
    monitor.drifted([])
    for _ in range(3):
        monitor.disconnected("gone", 1.0)
    for _ in range(3):
        monitor.standing_by("slot in use")
    events = [record.getMessage() for record in caplog.records]
    assert events == [
        *("streaming", "guard", "journal-begun", "gap", "drift", "journal-failed", "journal-empty", "journal-works"),
        *("gap-recovered", "drift-over", "disconnected", "standing-by"),
    ]


def test_a_record_that_is_not_renewed_is_not_shown_as_fresh(caplog: pytest.LogCaptureFixture) -> None:
    """Without a source nothing is renewed; once it is, only a change is a line."""
    caplog.set_level(logging.INFO)
    monitor = streaming()
    monitor.guarded("n", "fresh", 7)
    monitor.disconnected("gone", 1.0)
    assert monitor.state.nodes["n"].guard == "renewing-stopped"
    monitor.connected("snapshot", "a test")
    monitor.guarded("n", "fresh", 7)
    assert monitor.state.nodes["n"].guard == "fresh"
    assert [record.getMessage() for record in caplog.records].count("guard") == 1


def test_a_guard_makes_up_for_losses(caplog: pytest.LogCaptureFixture) -> None:
    """Where guarded values are given up for what the stream does not say, readiness goes on."""
    monitor = Monitor(all_guarded=True)
    monitor.connected("snapshot", "a test")
    touched = Touched()
    touched.losses[Loss("truncate", "public.media", "*")] += 1
    monitor.received(Transaction(xids=(1,), end_lsn=1, committed_at=0.0, touched=touched))
    assert monitor.unready() == []
    assert [record.levelname for record in caplog.records if record.getMessage() == "unserved"] == ["WARNING"]


def test_every_reason_is_one_line_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reason of the table can come, as one line: code, what is the matter, what to do."""
    monitor, now = Monitor(), time.monotonic()
    monitor.gap("a\nb")
    monitor.gate_held(now - 100, 1)
    monitor.reader("r", "away", holds=True)
    monitor.position(100, 0, 0)
    monitor.node_failed("n", NodeError("gone"))
    monitor.guarded("m", "absent", None)
    monitor.drifted([Finding(code="identity", table="t", rule="f", consequence="c")])
    monitor.journal_failed("n", OSError("full"))
    monitor.state.losses[Loss("toast", "t", "f")] += 1
    monkeypatch.setattr(time, "monotonic", lambda: now + READY_WITHIN + 5)
    monitor.journal_failed("n", OSError("full"))
    lines = monitor.unready()
    monitor.standing_by("slot in use")
    lines += [line for line in monitor.unready() if line not in lines]
    assert {line.partition(":")[0] for line in lines} == set(FIXES)
    assert all(line.endswith(FIXES[line.partition(":")[0]]) and line.isprintable() for line in lines)
