"""The invalidation daemon, as a process of its own."""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from leasecache.invalidation.lsn import parse_lsn
from leasecache.lab.account import Account
from leasecache.lab.servers import Server


class DaemonServer(Server):
    """Run `python -m leasecache.invalidation`; `rules` are "module:attribute" of caches, `guard_ttl` is in s.

    It is started once the publication and slot are there; `configuration` is what `leasecache setup` needs for that.
    """

    def __init__(
        self,
        name: str,
        *,
        dsn: str,
        slot: str,
        cache_url: str,
        rules: Sequence[str],
        publication: str = "leasecache",
        guard_ttl: float = 60,
    ) -> None:
        super().__init__(name)
        self.account = Account(uid=os.geteuid(), gid=os.getegid(), switched=False)  # it reads our virtual environment
        self._source = {"dsn": dsn, "slot": slot, "publication": publication}
        self._cache_url = cache_url
        self._rules = list(rules)
        self._guard_ttl = guard_ttl

    @property
    def configuration(self) -> str:
        """Return the text of its configuration file; JSON strings and lists are TOML too."""
        source = "\n".join(f"{key} = {json.dumps(value)}" for key, value in self._source.items())
        return (
            f"[source]\n{source}\n[cache]\nurl = {json.dumps(self._cache_url)}\n"
            f"[rules]\nimport = {json.dumps(self._rules)}\n[status]\nlisten = {json.dumps(self.address)}\n"
            f"[guard]\nttl = {self._guard_ttl}\n"
            '[journal]\ndirectory = "journal"\n'
        )

    def command(self) -> list[str]:
        path = self.data / "leasecache.toml"
        path.write_text(self.configuration, encoding="utf-8")
        return [sys.executable, "-m", "leasecache.invalidation", "--config", str(path)]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def status(self) -> dict[str, Any]:
        """Return its JSON summary: gate, positions, what fails."""
        with urllib.request.urlopen(f"http://{self.address}/status.json", timeout=5) as answer:
            summary: dict[str, Any] = json.load(answer)
            return summary

    def acknowledged(self) -> int:
        """Return W: every key of transactions that end before it is acknowledged by every cache node."""
        return parse_lsn(self.status()["acknowledged"])
