"""The status page as text: what it shows, that nothing in it becomes markup, and that it loads nothing."""

import base64
import hashlib
import itertools
import json
import math
import re
import threading
import time
from html.parser import HTMLParser
from typing import Any

import pytest

from leasecache.errors import NodeError
from leasecache.invalidation.answers import answer
from leasecache.invalidation.chart import chart
from leasecache.invalidation.figures import GUARD_STATES
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.history import SPAN, STEP, TROUBLES, WINDOW, Chart, Lag, Meter, Troubles
from leasecache.invalidation.look import POLICY, SCRIPT, STYLE
from leasecache.invalidation.markup import Markup, tag
from leasecache.invalidation.page import page
from leasecache.invalidation.quantities import duration, number, rate, size
from leasecache.invalidation.source import redact
from leasecache.invalidation.status import Monitor
from leasecache.invalidation.stream import Loss, Touched, Transaction
from leasecache.invalidation.summary import summary

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style>&amp;",
    "täg 表 \u202egnp\x00",
    "\udce4",
)


class Parsed(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def transaction(**touched: Any) -> Transaction:
    """Return a transaction that has touched something."""
    return Transaction(xids=(1,), end_lsn=1, committed_at=time.time(), touched=Touched(**touched))


def full(name: str) -> Monitor:
    """Return a monitor that has heard of everything, everywhere with `name` in it."""
    monitor = Monitor([name])
    monitor.connected(name, name, source=name, slot=name)
    touched = Touched(rows=1)
    touched.table_rows[name] += 1
    touched.rule_keys[name, name] += 1
    touched.losses[Loss("toast", name, name)] += 1
    monitor.received(Transaction(xids=(1,), end_lsn=1, committed_at=0.0, touched=touched))
    monitor.node_failed(name, NodeError(name))
    monitor.guarded(name, "foreign", 7)
    monitor.journaled(name, 3, 4)
    monitor.reader(name, name, holds=True)
    monitor.bumped(name)
    monitor.gap(name)
    monitor.journal_failed(name, NodeError(name))
    monitor.drifted([Finding(code="identity", table=name, rule=name, consequence=name, remedy=(name,))])
    monitor.crashed(ValueError(name))
    return monitor


def shown(monitor: Monitor) -> str:
    """Return the page of a monitor."""
    return answer("/", monitor, "text/html").body.decode()


TAGS = {found for found, _ in Parsed(shown(full("plain"))).tags}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_becomes_markup(name: str) -> None:
    """Names of tables, functions and nodes, and errors, are text wherever they stand. Guard: what `tag` escapes."""
    parsed = Parsed(shown(full(name)))
    assert {found for found, _ in parsed.tags} == TAGS
    assert not [attribute for _, attributes in parsed.tags for attribute in attributes if attribute.startswith("on")]
    assert [found for found, _ in parsed.tags].count("script") == 1
    assert name.encode(errors="replace").decode() in parsed.text
    json.loads(answer("/status.json", full(name)).body)


def test_the_page_loads_nothing_and_runs_its_own_script_only() -> None:
    """Nothing on the page is fetched from elsewhere, and the policy names the hashes of the style and the script."""
    reply = answer("/", full("plain"))
    tags = Parsed(reply.body.decode()).tags
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href", "style")]
    assert set(sources) == {"data:,", "status.json", "metrics", "healthz", "readyz"}
    inline = [re.findall(rf"<{name}>(.*?)</{name}>", reply.body.decode(), re.DOTALL) for name in ("style", "script")]
    assert inline == [[STYLE], [SCRIPT]]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (STYLE, SCRIPT)]
    assert all(f"'sha256-{digest}'" in POLICY for digest in hashes)
    assert ("Content-Security-Policy", POLICY) in reply.headers
    assert "unsafe" not in POLICY


def test_it_refreshes_without_javascript() -> None:
    """A browser without JavaScript loads the page again by itself."""
    head = shown(Monitor()).partition("<body")[0]
    assert '<noscript><meta http-equiv="refresh" content="5"/></noscript>' in head


def test_json_for_whoever_asks_for_it() -> None:
    """The same state is JSON at /status.json, and at / for those who accept it."""
    for path, accept in (("/status.json", ""), ("/", "application/json")):
        assert json.loads(answer(path, full("plain"), accept).body)["nodes"][0]["node"] == "plain"
    assert answer("/", Monitor(), "text/html").content_type.startswith("text/html")


def test_no_secret_is_shown() -> None:
    """Neither page nor metrics have the password of a dsn, since the monitor is told none."""
    monitor = Monitor()
    monitor.connected("standby", "a test", source=redact("postgresql://daemon:s3cr3t@db/shop"), slot="s")
    for path in ("/", "/status.json", "/metrics"):
        body = answer(path, monitor).body
        assert b"s3cr3t" not in body
        assert path == "/metrics" or b"host=db" in body


def test_a_state_of_everything() -> None:
    """What the monitor was told is on the page: guard, journal, reader, drift, errors, and why it is not ready."""
    text = " ".join(Parsed(shown(full("plain"))).text)
    for words in ("foreign", "generation 0000000000000007", "3 keys", "holds", "down", "identity", "unexpected"):
        assert words in text
    assert {why["code"] for why in summary(full("plain").state)["not_ready"]} >= {"gap", "reader", "journal", "drift"}


def test_long_lists_are_cut() -> None:
    """A page stays small however many tables there are; JSON has them all."""
    monitor = Monitor()
    touched = Touched()
    touched.table_rows.update({f"t{i}": 1 for i in range(400)})
    monitor.received(Transaction(xids=(1,), end_lsn=1, committed_at=0.0, touched=touched))
    assert "and 300 more" in shown(monitor)
    assert len(summary(monitor.state)["tables"]) == 400


def test_names_beyond_the_limit_are_counted_together() -> None:
    """Labels of metrics are bounded: of ten thousand tables most are "(other)", and no row is lost."""
    monitor = Monitor()
    for i in range(10_000):
        monitor.received(transaction(table_rows={f"t{i}": 1}))
    assert len(monitor.state.tables) == 501
    assert sum(meter.total for meter in monitor.state.tables.values()) == 10_000
    value = monitor.figures.registry.get_sample_value
    assert value("leasecache_daemon_table_rows_total", {"table": "(other)"}) == 9_500


def test_guards_and_nodes_in_figures() -> None:
    """Of a node's guard states one is 1 at a time."""
    monitor = Monitor(["n"])
    value = monitor.figures.registry.get_sample_value
    assert value("leasecache_daemon_node_up", {"node": "n"}) == 1
    for state in GUARD_STATES:
        monitor.guarded("n", state, 1)
        labels = [{"node": "n", "state": each} for each in GUARD_STATES]
        assert [value("leasecache_daemon_guard", one) for one in labels] == [float(s == state) for s in GUARD_STATES]


def test_metrics_are_what_they_are_called() -> None:
    """A scrape has each series once, without the time at which it began, and gauges of what is true right now."""
    text = answer("/metrics", full("plain")).body.decode()
    assert "_created" not in text
    assert 'leasecache_daemon_drift_findings{kind="fatal"} 1.0' in text
    assert 'leasecache_daemon_rule_keys_total{function="plain",table="plain"} 1.0' in text


def test_a_meter_forgets() -> None:
    """A rate is that of the last seconds; the total stays."""
    meter = Meter()
    for second in range(100, 130):
        meter.add(5, second + 0.5)
    assert (meter.rate(130.0), meter.rate(130.0 + WINDOW / 2), meter.rate(200.0), meter.total) == (5.0, 2.5, 0.0, 150)


def test_the_chart_keeps_the_worst_of_each_step_and_no_more_than_its_span() -> None:
    """However often a lag is noted, a bounded number of steps is kept, each with its worst."""
    history = Chart()
    for i in range(20_000):
        history.note(float(i), i % 7, 0.1 if i % STEP == 2 else 0.0)
    steps = history.steps(20_000.0)
    assert len(steps) <= SPAN // STEP
    assert {step.lag_seconds for step in steps} == {0.1}
    assert history.steps(20_000.0 + 2 * SPAN) == []


def test_lag_is_the_age_of_what_w_has_not_passed() -> None:
    """The lag in time grows while W stands, however much arrives, and is over when W has passed."""
    lag = Lag()
    for i in range(10_000):
        lag.note(100 + i, 50, float(i) / 100)
    assert lag.seconds(100.0) == pytest.approx(100.0)
    lag.note(10_099, 5_099, 100.0)
    assert lag.seconds(100.0) == pytest.approx(50.0, abs=5)
    lag.note(10_099, 10_099, 100.0)
    assert lag.seconds(101.0) == 0
    lag.note(10, 5, 102.0)  # another timeline
    assert lag.seconds(103.0) == 1.0


def test_the_last_troubles() -> None:
    """Troubles are kept with the latest first, those that repeat are one, and there are never more than so many."""
    troubles = Troubles()
    for i in range(100):
        troubles.note(float(i), "node-down", "n: gone")
        troubles.note(float(i), "unexpected", f"number {i}")
    found = troubles.latest()
    assert len(found) == TROUBLES
    assert [trouble.at for trouble in found] == sorted((trouble.at for trouble in found), reverse=True)
    assert sum(trouble.times for trouble in found if trouble.event == "node-down") > 1


def test_the_chart_leaves_out_what_is_not_known() -> None:
    """Where steps are missing the line is interrupted; numbers stay on the canvas whatever they are."""
    points = [(1000.0 + 5 * i, 0.001 * i) for i in range(20)] + [(1500.0, 1e15), (1505.0, 0.0)]
    svg = chart(points, 1600.0, span=900, step=5, label="lag", unit=size, base=1024)
    assert svg.count('class="line"') == 2
    corners = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", svg)]
    assert all(0 <= y <= 150 and math.isfinite(y) for y in corners)
    assert chart([], 0.0, span=900, step=5, label="lag", unit=size, base=1024).count('class="line"') == 0


def test_quantities() -> None:
    """Sizes, times and rates are short, and have their units."""
    assert [size(n) for n in (0, 1023, 1536, 200 * 1024**2)] == ["0 B", "1023 B", "1.5 KiB", "200 MiB"]
    times = (0.0042, 3.21, 125, 7500, 4 * 86400)
    assert [duration(s) for s in times] == ["4 ms", "3.2 s", "2 min 5 s", "2 h 5 min", "4 d 0 h"]
    assert [rate(0), rate(0.4), rate(12.3)] == ["0", "0.4", "12"]
    assert number(1234567) == "1\u202f234\u202f567"


def test_markup_is_escaped_once() -> None:
    """Text and attributes are escaped, Markup is not escaped again, and None is nothing."""
    inner = tag("b", "<&>")
    assert tag("p", inner, None, ["x", 1], title='"<') == '<p title="&quot;&lt;"><b>&lt;&amp;&gt;</b>x1</p>'
    assert isinstance(inner, Markup)


def test_a_daemon_that_does_not_stream_has_a_page() -> None:
    """Whatever the daemon waits for, the page says so."""
    monitor = Monitor()
    assert "not streaming" in page(summary(monitor.state)).decode()
    monitor.standing_by("slot 's' is in use")
    assert "standing by" in page(summary(monitor.state)).decode()


def test_pages_are_made_while_the_loop_goes_on() -> None:
    """The loop adds nodes, tables, readers and troubles while another thread draws pages; none of them fails."""
    monitor, done = Monitor(), threading.Event()

    def loop() -> None:
        for i in itertools.count():
            if done.is_set():
                return
            monitor.received(transaction(table_rows={f"t{i % 400}": 1}, rule_keys={(f"f{i % 400}", "t"): 1}))
            monitor.invalidated(f"n{i % 400}", 1)
            monitor.reader(f"r{i % 400}", "x", holds=bool(i % 2))
            monitor.bumped(f"reason {i}")
            monitor.position(i + 10, i, 0)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        for path in ("/", "/status.json", "/metrics", "/readyz") * 4:
            assert answer(path, monitor).body
    finally:
        done.set()
        thread.join()
