"""A dispatcher in a time of its own, before nodes in memory that hold guard records and can be away."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from leasecache.errors import NodeError
from leasecache.guard import RECORD_FLAGS, Record, guard_key
from leasecache.invalidation.dispatch import Dispatcher, Terms
from leasecache.invalidation.mailbox import Naming
from leasecache.lease import Hit, Lease, Stored
from leasecache.rules import Rule, RuleSet
from leasecache.stores.memory import MemoryStore
from tests.unit.test_stream_dispatch import FakeRing, Notes

WITHIN = 60.0  # s
TTL = 60.0  # s
GUARD = guard_key("shop")


def rule(table: str) -> Rule:
    """Return a rule of a function of its own."""
    template, kinds = f"{table}:{{x}}", {"x": "int"}
    return Rule(
        function=f"get_{table}", template=template, kinds=kinds, schema="public", table=table, fields={"x": "id"}
    )


RULES = RuleSet(namespace="shop", rules=(rule("media"), rule("users")))


class GuardedNode(MemoryStore):
    """A store in memory that holds a guard record, can be away, and notes the order of what it was told."""

    def __init__(self, name: str = "a") -> None:
        super().__init__()
        self.name = name
        self.away = False
        self.run_id = "-"
        self.told: list[bytes] = []
        self.before_record: Callable[[], None] = lambda: None

    def run(self) -> str:
        """Return which run of the server this is."""
        self._check()
        return self.run_id

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Any:
        """Answer, unless it is away."""
        self._check()
        return super().lease_get(key, lease_for, refresh_ahead, mark)

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Any:
        """Store, unless it is away."""
        self._check()
        self.told.append(lease.key)
        return super().lease_set(lease, flags, body, ttl)

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:  # type: ignore[override]
        """Invalidate, and read the record after that."""
        self._check()
        self.told += keys
        self.invalidate(keys, stale_for)
        self.before_record()
        found = self.look(guard_key)
        return None if found is None else found.value

    def record(self) -> Record | None:
        """Return the record that stands."""
        found = self.look(GUARD)
        return None if found is None else Record.from_bytes(found.value)

    def write(self, record: Record) -> None:
        """Put a record in the place of the one that stands."""
        answer = self.lease_get(GUARD, 10)
        assert isinstance(answer, (Hit, Lease)), answer
        assert isinstance(self.lease_set(Lease(GUARD, answer.token), RECORD_FLAGS, record.to_bytes(), TTL), Stored)

    def _check(self) -> None:
        if self.away:
            raise NodeError("away")


class Desk:
    """A dispatcher of one node whose slot is ours, in a time of its own."""

    def __init__(self, journal: Path | None = None, naming: Naming | None = None, **terms: Any) -> None:
        self.node, self.notes, self.woken = GuardedNode(), Notes(), threading.Event()
        self.terms = Terms(naming=naming or Naming(), guard_ttl=TTL, journal=journal, **terms)
        self.now = time.monotonic()
        self.dispatcher = self.open()

    def open(self, confirmed: int = 0, readers: int | None = 1, system: str = "system") -> Dispatcher:
        """Begin as a new process does."""
        self.dispatcher = Dispatcher(
            [FakeRing(self.node)],
            RULES,
            self.terms,
            self.notes,
            self.woken.set,
            "slot",
            lambda: readers,  # type: ignore[arg-type]
        )
        known = self.dispatcher.knows(system, confirmed)
        self.dispatcher.begin(system, confirmed, self.now, known=known)
        return self.dispatcher

    def again(self, confirmed: int, **changes: Any) -> None:
        """End, and begin as another process."""
        self.dispatcher.close()
        self.open(confirmed, **changes)

    def step(self, seconds: float = 0.0, *, vouched: bool = True) -> None:
        """Let time pass, and the dispatcher do what is due until nothing is under way."""
        self.now += seconds
        if vouched:
            self.dispatcher.vouch(self.now)
        [box] = self.dispatcher._mailboxes.values()
        deadline = time.monotonic() + WITHIN
        while True:
            self.dispatcher.step(self.now)
            if box._job is None:
                return
            assert time.monotonic() < deadline
            self.woken.wait(0.01)
            self.woken.clear()

    def generation(self) -> int:
        """Return the generation that the node's record names."""
        record = self.node.record()
        assert record is not None
        return record.generation


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A dispatcher whose node has its first record."""
    made = Desk()
    made.step()
    yield made
    made.dispatcher.close()


@pytest.fixture
def journaling(tmp_path: Path) -> Iterator[Desk]:
    """The same with a journal."""
    made = Desk(tmp_path)
    made.step()
    made.dispatcher.advance(10)
    assert made.dispatcher.confirm() == 10
    yield made
    made.dispatcher.close()
