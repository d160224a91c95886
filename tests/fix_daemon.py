"""The daemon as a process of its own, against a database and a memcached of the test's own."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from leasecache.config import open_store
from leasecache.invalidation.lsn import parse_lsn
from leasecache.lab import MemcachedServer, PostgresServer, wait_until
from leasecache.lease import Lease, Stored
from leasecache.rules import Rule, RuleSet
from leasecache.stores.base import Store
from tests.fix_servers import PostgresPair

WITHIN = 60.0  # s
SLOT = "leasecache_test"
ROLE = "leasecache"  # the one that the documentation tells to make, with no more rights than that
ROLE_SQL = (Path(__file__).parent.parent / "docs" / "operations" / "role.sql").read_text(encoding="utf-8")
PREPARE = (
    ROLE_SQL,
    "create table media (id int primary key, title text)",
    "create table comments (id int primary key, media_id int not null, body text)",
    "create unique index comments_media on comments (media_id, id)",
    "alter table comments replica identity using index comments_media",
    "create table tags (media_id int, name text)",
    "alter table tags replica identity full",
    "create table unpublished (id int)",
    "create publication leasecache for table media, comments, tags",
)


def rule(table: str, column: str, **changes: Any) -> Rule:
    """Return the rule that ties the key `<table>:{x}` to a column."""
    values = {"function": f"get_{table}", "template": f"{table}:{{x}}", "kinds": {"x": "int"}, "schema": "public"}
    return Rule(**{**values, "table": table, "fields": {"x": column}, **changes})


RULES = (rule("media", "id"), rule("comments", "media_id"), rule("tags", "media_id"))


class DaemonProcess:
    """Run `python -m leasecache.invalidation` with a configuration in `directory`."""

    def __init__(self, directory: Path, dsn: str, url: str, rules: Sequence[Rule] = RULES, **source: Any) -> None:
        self.log_path = directory / "daemon.log"
        self.config = directory / "leasecache.toml"
        document = RuleSet(namespace="shop", rules=tuple(rules)).to_json()
        (directory / "rules.json").write_text(json.dumps(document), encoding="utf-8")
        lines = {"dsn": dsn, "slot": SLOT, "publication": "leasecache", **source}
        self.config.write_text(
            "[source]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
            + f'[cache]\nurl = "{url}"\n[rules]\nfile = "rules.json"\n[status]\nlisten = "127.0.0.1:0"\n',
            encoding="utf-8",
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "DaemonProcess":
        """Start the process; its log begins anew."""
        command = [sys.executable, "-m", "leasecache.invalidation", "--config", str(self.config)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log)
        return self

    def streaming(self) -> "DaemonProcess":
        """Wait until it streams."""
        wait_until(lambda: "event=streaming" in self.log() or self.exited, WITHIN, "streaming")
        assert not self.exited, self.log()
        return self

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """Return the process, which must have been started."""
        assert self._process is not None
        return self._process

    @property
    def exited(self) -> bool:
        """Whether the process is over."""
        return self.process.poll() is not None

    def log(self) -> str:
        """Return what it has written."""
        return self.log_path.read_text(encoding="utf-8")

    def terminate(self) -> int:
        """Ask it to end and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WITHIN)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def address(self) -> str:
        """Return where its status server listens, as it has logged."""
        return next(word for word in self.log().split() if word.startswith("address=")).removeprefix("address=")

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page of its status server."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=WITHIN) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"leasecache_daemon_{name}")]
        exact = [line for line in lines if line[len(f"leasecache_daemon_{name}")] in " {"]
        return sum(float(line.rpartition(" ")[2]) for line in exact)


class World:
    """A database with tables, publication and slot, a memcached, and the daemon between them."""

    def __init__(self, where: str, pair: PostgresPair, database: str, directory: Path) -> None:
        self.primary, self.standby, self.database = pair.primary, pair.standby, database
        self.source: PostgresServer = getattr(pair, where)
        self._servers = ExitStack()
        self.memcached = self._servers.enter_context(MemcachedServer())
        self.url = f"{self.memcached.url}?namespace=shop"
        self.store: Store = open_store(self.url)
        self._servers.callback(self.store.close)
        for statement in PREPARE:
            self.write(statement)
        self.catch_up()
        self.source.create_logical_slot(SLOT, dbname=database)
        self.daemon = DaemonProcess(directory, self.source.dsn(database, user=ROLE), self.url)
        self._servers.callback(lambda: self.daemon.kill())

    def write(self, statement: str, *parameters: object) -> None:
        """Run a statement on the primary."""
        self.primary.query(statement, *parameters, dbname=self.database)

    def catch_up(self) -> None:
        """Wait until the source shows what has been written."""
        if self.source is not self.primary:
            self.source.catch_up()

    def fill(self, *keys: str) -> None:
        """Store a value under each key."""
        for key in keys:
            lease = self.store.lease_get(f"shop:{key}".encode(), 10)
            assert isinstance(lease, Lease), (key, lease)
            assert isinstance(self.store.lease_set(lease, 1, b"old", 3600), Stored)

    def cached(self, key: str) -> bool:
        """Whether a value is stored under the key."""
        return self.store.look(f"shop:{key}".encode()) is not None

    def await_gone(self, *keys: str) -> None:
        """Wait until no value is stored under any of the keys."""
        wait_until(lambda: not any(map(self.cached, keys)), WITHIN, f"invalidation of {keys[:5]}; {self.daemon.log()}")

    def confirmed(self) -> int:
        """Return the position that the slot has been acknowledged up to."""
        sql = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s"
        return parse_lsn(self.source.value(sql, SLOT, dbname=self.database))

    def written(self) -> int:
        """Return how far the primary has written its log."""
        return parse_lsn(self.primary.value("select pg_current_wal_lsn()::text", dbname=self.database))

    def await_confirmed(self, position: int) -> None:
        """Wait until the slot has been acknowledged up to a position."""
        wait_until(lambda: self.confirmed() >= position, WITHIN, f"acknowledgement; {self.daemon.log()}")

    def close(self) -> None:
        """End daemon and memcached."""
        self._servers.close()


MakeWorld = Callable[..., World]


@pytest.fixture(params=["primary", "standby"])
def world(
    request: pytest.FixtureRequest, postgres_pair: PostgresPair, database: str, tmp_path: Path
) -> Iterator[World]:
    """A world whose daemon decodes at the primary or at the standby; the daemon is not started yet."""
    made = World(request.param, postgres_pair, database, tmp_path)
    yield made
    made.close()


@pytest.fixture
def primary_world(postgres_pair: PostgresPair, database: str, tmp_path: Path) -> Iterator[World]:
    """A world whose daemon decodes at the primary."""
    made = World("primary", postgres_pair, database, tmp_path)
    yield made
    made.close()


@pytest.fixture
def fragile_world(fresh_pair: PostgresPair, tmp_path: Path) -> Iterator[Callable[[str], World]]:
    """Make a world at the "primary" or the "standby" whose servers the test may break."""
    with ExitStack() as stack:

        def make(where: str) -> World:
            made = World(where, fresh_pair, "app", tmp_path)
            stack.callback(made.close)
            return made

        yield make


def run_to_exit(command: Sequence[str], **environment: str) -> tuple[int, str, str]:
    """Run a Python command line to its end; return exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=WITHIN * 2,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr
