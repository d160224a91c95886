"""A headless Chromium, driven over the WebDriver protocol: https://www.w3.org/TR/webdriver2/."""

import base64
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from leasecache.lab.account import Account
from leasecache.lab.servers import Server

WITHIN = 60.0  # s
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--disable-extensions", "--disable-default-apps", "--disable-breakpad", "--no-proxy-server"),
)


class Browser(Server):
    """One window of one browser, which looks at pages of ours alone."""

    def __init__(self) -> None:
        super().__init__("chromedriver")
        self.account = Account(uid=os.geteuid(), gid=os.getegid(), switched=False)  # what reads our fonts and settings
        self._session = ""

    def command(self) -> list[str]:
        return [shutil.which("chromedriver") or "chromedriver", f"--port={self.port}"]

    def ready(self) -> bool:
        try:
            return bool(self._ask("GET", "/status")["ready"])
        except OSError:
            return False

    def start(self) -> "Browser":
        super().start()
        options = {"args": [*FLAGS, f"--user-data-dir={self.data / 'profile'}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.close()
            raise
        self._session = f"/session/{answer['sessionId']}"
        return self

    def close(self) -> None:
        if self._session:
            session, self._session = self._session, ""
            self._ask("DELETE", session)
        super().close()

    def open(self, url: str) -> None:
        """Load a page."""
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a function body in JavaScript returns."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def text(self, selector: str) -> str:
        """Return what can be read in the first element that matches, "" when there is none."""
        return str(self.run("const e = document.querySelector(arguments[0]); return e ? e.innerText : ''", selector))

    def tell(self, command: str, **parameters: object) -> None:
        """Give a command of the DevTools protocol."""
        self._ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self) -> list[str]:
        """Return what the console has said since the last time: blocked content, errors of scripts."""
        return [entry["message"] for entry in self._ask("POST", f"{self._session}/se/log", {"type": "browser"})]

    def screenshot(self) -> bytes:
        """Return the window as PNG."""
        return base64.b64decode(self._ask("GET", f"{self._session}/screenshot"))

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=WITHIN) as answer:
            return json.load(answer)["value"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests that look at pages."""
    with Browser() as started:
        yield started
