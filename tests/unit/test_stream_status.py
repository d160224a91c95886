"""Readiness, and the log's two formats."""

import json
import logging
import time

import pytest

from leasecache.errors import NodeError
from leasecache.invalidation import logs
from leasecache.invalidation.answers import answer
from leasecache.invalidation.readiness import HELD_TOO_LONG
from leasecache.invalidation.status import Monitor
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
    monkeypatch.setattr(time, "monotonic", lambda: now + HELD_TOO_LONG + 5)
    assert [reason.partition(":")[0] for reason in monitor.unready()] == ["gate-held", "node-down"]
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


@pytest.mark.parametrize("form", logs.FORMATS)
def test_log_lines(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is one line whatever is logged, and can be taken apart again."""
    log = logging.getLogger("leasecache.daemon")
    before = log.handlers[:], log.propagate, log.level
    try:
        logs.configure(form, "info")
        logs.event(logging.INFO, "happened", where="a b", quote='"', lines="x\ny", empty="", number=1)
        logs.event(logging.DEBUG, "not shown")
    finally:
        log.handlers[:], log.propagate = before[0], before[1]
        log.setLevel(before[2])
    (line,) = capsys.readouterr().err.splitlines()
    if form == "json":
        fields = json.loads(line)
        assert (fields["event"], fields["lines"], fields["number"]) == ("happened", "x\ny", 1)
    else:
        assert line.endswith('level=info event=happened where="a b" quote="\\"" lines="x\\ny" empty="" number=1')
