"""docs/metrics.md runs as it stands, and names every metric that there is."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from leasecache.lab import MemcachedServer, free_port
from leasecache.metrics import BOUNDS, snapshot
from leasecache.prometheus import LeasecacheCollector
from tests.fix_daemon import run_to_exit

PAGE = (Path(__file__).parent.parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[SCRAPE] = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(leasecache_\w+)` \| ([^|]+) \| (gauge|histogram)?", re.MULTILINE)
SHOWN = re.compile(r"^(\S+) +# (.+)$", re.MULTILINE)
APPLICATION, CALLS, GUNICORN, READING = PYTHON

SHOW = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=30).read().decode())
"""
WORKERS = """
import os, sys, types
names = {}
exec(GUNICORN, names)

class Worker:
    pid, log = 7, types.SimpleNamespace(warning=lambda *words: print(words[0] % words[1:], flush=True))

for calls in (1, 3):
    reading, writing = os.pipe()
    if not os.fork():
        names["post_fork"](None, Worker())
        for _ in range(calls):
            get_media(calls)
        os.write(writing, b"up")
        sys.stdin.read()
        os._exit(0)
    os.read(reading, 2)
names["post_fork"](None, Worker())
"""


def put(text: str, addresses: Mapping[str, str]) -> str:
    """Return a text of the page with real addresses."""
    for shown, real in addresses.items():
        assert shown in text
        text = text.replace(shown, real)
    return text


def test_the_page_runs(memcached: MemcachedServer) -> None:
    """The application of the page shows the scrape of the page, its times apart, and the figures of the page."""
    port = str(free_port())
    program = put(APPLICATION, {"127.0.0.1:11211": memcached.address, "9400": port}) + CALLS + SHOW.format(port=port)
    shown = SHOWN.findall(READING)
    assert len(shown) == 6
    program += READING + "".join(f"assert {what} == {value}, {what}\n" for what, value in shown)
    code, out, err = run_to_exit(["-c", program])
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if "leasecache_" in line and "_bucket" not in line]
    sample = put(SCRAPE, {"127.0.0.1:11211": memcached.address})
    assert list(map(timeless, lines)) == list(map(timeless, sample.splitlines()))


def timeless(line: str) -> str:
    """Return a line of a scrape without the seconds that its sum has."""
    return re.sub(r"(?<=_sum\{)(.*\}) .*", r"\1 #", line)


def test_every_metric_is_on_the_page() -> None:
    """The table has each family with its labels and type and none that is gone; alerts speak of what there is."""
    collector = LeasecacheCollector(Nothing())
    families = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family._labelnames)
        for family in collector.describe()
    }
    table = {
        name: (kind or "counter", ("cache", *re.findall(r"`(\w+)`", labels)))
        for name, labels, kind in ROW.findall(PAGE)
    }
    assert table == families
    mentioned = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bleasecache_\w+", PAGE)}
    assert mentioned == families.keys()


class Nothing:
    """A cache without functions and nodes."""

    def stats(self) -> object:
        """Return nothing."""
        return snapshot([], None)


def test_the_buckets_are_on_the_page() -> None:
    """The bounds that the page tells are those that there are."""
    [listed] = re.findall(r"Buckets end at (.*) s\.$", PAGE, re.MULTILINE)
    small, large = listed.split(" ms, ")
    numbers = [float(number) / 1000 for number in re.findall(r"[\d.]+", small)]
    assert (*numbers, *map(float, re.findall(r"[\d.]+", large))) == BOUNDS


def test_every_worker_has_its_port(memcached: MemcachedServer) -> None:
    """Forked workers show their own figures, each on a port; one that finds none says so and serves all the same."""
    ports = [free_port(), free_port()]
    application = put(APPLICATION, {"127.0.0.1:11211": memcached.address})
    application = re.sub(r"^start_http_server.*", "", application, flags=re.MULTILINE)
    server = put(GUNICORN, {"range(9401, 9417)": str(ports)})
    program = f"GUNICORN = {server!r}\n{application}\nget_media(0)\n{WORKERS}\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "no port is left to show metrics of worker 7\n"
        assert [calls(port) for port in ports] == [1, 3]
        process.communicate("")
    assert process.returncode == 0


def calls(port: int) -> float:
    """Return how many calls a worker has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("leasecache_calls_total{"))
