"""gunicorn: an application loaded and used before the fork, served by several workers."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from leasecache.lab import MemcachedServer, free_port, wait_until

ROOT = Path(__file__).parent.parent.parent
WITHIN = 60.0  # s
WORKERS = 3
KINDS = {
    "sync": ("--worker-class", "sync"),
    "threads": ("--worker-class", "gthread", "--threads", "4"),
    "gevent": ("--worker-class", "gevent"),
}


class Web:
    """gunicorn with `tests.integration.web`."""

    def __init__(self, url: str, loads: Path, kind: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._loads = loads
        options = ("--preload", "--workers", str(WORKERS), "--bind", self.address, "--graceful-timeout", "5")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, *KINDS[kind], "tests.integration.web:app"],
            cwd=ROOT,
            env={**os.environ, "WEB_CACHE_URL": url, "WEB_LOADS": str(loads), "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def get(self, item_id: int) -> dict[str, Any]:
        """Ask one of the workers."""
        with urllib.request.urlopen(f"http://{self.address}/?item={item_id}", timeout=WITHIN) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def answers(self) -> bool:
        """Tell whether it serves."""
        assert self._process.poll() is None, self._process.stderr and self._process.stderr.read().decode()
        try:
            return self.get(0)["value"] == 0
        except urllib.error.URLError:
            return False

    def loads(self) -> Counter[int]:
        """Return how often each item has been loaded, by whomever."""
        return Counter(map(int, self._loads.read_text().split()))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate(timeout=WITHIN)


@pytest.fixture(params=[(kind, recent) for kind in KINDS for recent in (False, True)], ids=str)
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Web]:
    """An application served by workers of each kind, on a memcached of each kind."""
    kind, recent = request.param
    with MemcachedServer(recent=recent) as server:
        served = Web(f"{server.url}?timeout=60&connect_timeout=60", tmp_path / "loads", kind)
        try:
            wait_until(served.answers, WITHIN, "gunicorn")
            yield served
        finally:
            served.close()


def test_workers_that_were_forked_from_a_used_cache(web: Web) -> None:
    """Each worker has connections of its own, values are right under concurrent requests, each is loaded once.

    Guard: `Pool.forget`. Workers over one connection would read each other's answers.
    """
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(web.get, [n % 20 for n in range(400)]))
        seen: dict[int, dict[str, Any]] = {}

        def all_seen() -> bool:
            seen.update({answer["pid"]: answer for answer in callers.map(web.get, range(20))})
            return len(seen) == WORKERS

        wait_until(all_seen, WITHIN, "every worker's turn")
    assert [answer["value"] for answer in answers] == [n % 20 * 10 for n in range(400)]
    assert web.loads() == dict.fromkeys(range(20), 1)
    ports = [port for answer in seen.values() for port in answer["ports"]]
    before = next(iter(seen.values()))["before"]
    assert before
    assert len(ports) == len(set(ports))
    assert not set(ports) & set(before)
