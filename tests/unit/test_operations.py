"""What operators are given fits the code: the unit, the alerts, the dashboard, the runbook."""

import ast
import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.links import ROOT, slug
from leasecache.invalidation.figures import Figures
from leasecache.invalidation.readiness import FIXES, LOSSES
from tests.unit.test_status_page import full

OPERATIONS = ROOT / "docs" / "operations"
RUNBOOK = (OPERATIONS / "runbook.md").read_text(encoding="utf-8")
SECTIONS = {slug(heading) for heading in re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)}
ALERTS = yaml.safe_load((OPERATIONS / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
DASHBOARD = json.loads((OPERATIONS / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [alert["expr"] for alert in ALERTS] + [t["expr"] for panel in PANELS for t in panel["targets"]]
OF_PROMETHEUS = {"instance", "job", "le"}  # labels that it adds, or that every histogram has


def events() -> Iterator[tuple[str, str]]:
    """Return each event that the daemon may log, with the module that does."""
    for path in sorted((ROOT / "invalidation").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            if getattr(node.func, "id", getattr(node.func, "attr", "")) in ("event", "_trouble"):
                for name in ast.walk(node.args[1]):
                    if isinstance(name, ast.Constant):
                        yield str(name.value), path.name


def samples() -> dict[str, set[str]]:
    """Return the names under which Prometheus gets each metric, with its labels."""
    registry = full("x").figures.registry
    labels = {getattr(one, "_name", ""): set(getattr(one, "_labelnames", ())) for one in registry._collector_to_names}
    found: dict[str, set[str]] = {}
    for metric in registry.collect():
        of_metric = labels.get(metric.name, set())
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        found |= {metric.name + suffix: of_metric for suffix in suffixes}
    return found


SAMPLES = samples()


def test_every_event_is_in_the_runbook() -> None:
    """The table of log lines has each event that the daemon may log, and no other."""
    table = RUNBOOK[RUNBOOK.index("## Every line of the log") :]
    told = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(told) == {name for name, _ in events()}


def test_every_reason_and_every_loss_is_in_the_runbook() -> None:
    """Each reason of /readyz has a section of its own, each loss of keys a line."""
    assert set(FIXES) <= SECTIONS
    assert [loss for loss in LOSSES if f"`{loss}`" not in RUNBOOK] == []


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_leads_to_the_runbook(alert: dict[str, Any]) -> None:
    """An alert has a severity, a summary and a section of the runbook that names it."""
    page, _, section = alert["annotations"]["runbook"].partition("#")
    assert (ROOT / page) == OPERATIONS / "runbook.md"
    assert section in SECTIONS
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"\d+[sm]", alert["for"])
    assert alert["alert"] in RUNBOOK
    named = re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"])
    grouped = re.findall(r"by \(([^)]*)\)", alert["expr"])
    metrics = re.findall(r"leasecache_\w+", alert["expr"])
    labels = set(re.split(r", *", grouped[0])) if grouped else set().union(*map(SAMPLES.__getitem__, metrics))
    assert set(named) <= labels | {"instance"}


def test_every_alert_named_in_the_runbook_exists() -> None:
    """The runbook names no alert that has gone."""
    assert set(re.findall(r"Leasecache\w+", RUNBOOK)) <= {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_uses_metrics_that_exist(expression: str) -> None:
    """Alerts and panels ask for metrics of /metrics, by labels that these have."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    metrics = re.findall(r"\b(?:leasecache|process)_\w+", plain)
    assert metrics
    assert [metric for metric in metrics if metric not in SAMPLES] == []
    known = set().union(*(SAMPLES[metric] for metric in metrics)) | OF_PROMETHEUS
    matchers = re.findall(r"(\w+)(?:=~|!=|!~|=)\"\"", plain)
    grouped = [label for group in re.findall(r"(?:by|on|without) \(([^)]*)\)", plain) for label in group.split(", ")]
    assert {*matchers, *grouped} <= known
    assert plain.count("(") == plain.count(")")


def test_an_unknown_metric_is_found() -> None:
    """The check above is one: it refuses a metric and a label that are not there."""
    for wrong in ("leasecache_daemon_nothing > 0", 'leasecache_daemon_node_up{nod="x"}'):
        with pytest.raises(AssertionError):
            test_every_expression_uses_metrics_that_exist(wrong)


def test_the_dashboard_can_be_imported() -> None:
    """Panels have ids of their own, do not overlap, and take the data source that whoever imports it chooses."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + i, grid["y"] + j) for i in range(grid["w"]) for j in range(grid["h"])}
        assert not cells & taken
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {"${datasource}"}
    assert {"datasource", "instance"} == {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert all(panel["title"] and panel["description"] for panel in PANELS)


def test_metrics_have_help_and_units() -> None:
    """Each metric of ours has a help text; times are in seconds and sizes in bytes, by name."""
    ours = [metric for metric in Figures().registry.collect() if metric.name.startswith("leasecache_daemon_")]
    assert len(ours) > 30
    assert all(metric.documentation for metric in ours)
    assert [m.name for m in ours if re.search(r"_(ms|millis\w*|kb|mib|minutes)$", m.name)] == []


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit of systemd with a program that is there."""
    text = (OPERATIONS / "leasecache-daemon.service").read_text(encoding="utf-8")
    path = tmp_path / "leasecache-daemon.service"
    path.write_text(text.replace("/opt/leasecache/bin/leasecache", shutil.which("true") or ""), encoding="utf-8")
    return path


def test_the_unit_starts_the_daemon_as_it_is_called() -> None:
    """What systemd starts is a command that there is; it keeps a journal, comes back, and may do nothing else."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(OPERATIONS / "leasecache-daemon.service", encoding="utf-8")
    service = parser["Service"]
    _, *arguments = shlex.split(service["ExecStart"])
    assert arguments[:2] == ["daemon", "--config"]
    help_ = subprocess.run([sys.executable, "-m", "leasecache", "daemon", "--help"], capture_output=True, text=True)
    assert "--config" in help_.stdout
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("always", "1")
    assert (service["DynamicUser"], service["StateDirectory"]) == ("yes", "leasecache")
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["CapabilityBoundingSet"]) == (
        "yes",
        "strict",
        "",
    )
    assert int(service["TimeoutStopSec"]) > 10  # s that the daemon takes to drain


def test_systemd_takes_the_unit(unit: Path) -> None:
    """Where a systemd of 250 or later is, it finds nothing wrong with the unit, and little that it leaves allowed."""
    program = shutil.which("systemd-analyze")
    if program is None or _version_of(program) < 250:
        return  # the unit's keys are checked above
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True, timeout=60)
    about_it = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, about_it) == (0, [])
    subprocess.run([program, "security", "--offline=true", "--threshold=15", unit], check=True, capture_output=True)


def _version_of(program: str) -> int:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"\d+", told)[0])


def test_the_screenshot_is_small() -> None:
    """The picture of the page is a PNG that costs a clone little."""
    data = (OPERATIONS / "status-page.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 150_000
