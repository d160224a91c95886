"""A primary that Sentinels have replaced, and that goes on answering those who are connected to it."""

import contextlib
import time
from typing import Any
from unittest.mock import MagicMock

import pytest

from leasecache.config import open_store
from leasecache.errors import GuardError
from leasecache.guard import guard_key, ring_mark
from leasecache.invalidation import keeper
from leasecache.invalidation.keeper import Charter, Keeper
from leasecache.invalidation.mailbox import Mailbox, Naming
from leasecache.lab import RedisServer, wait_until
from leasecache.lab.redis import PROMPT
from leasecache.lease import Lease, Stored
from leasecache.stores.redis import RedisNode
from tests.fix_redis import FLAGS, KEY, holds

MARK = b"0123456789ab"
LIFE = 3.0  # s of a record


class Office:
    """A service whose primary is the last of `held_by`, and a daemon that invalidates there."""

    def __init__(self, first: RedisServer) -> None:
        self.held_by = [first]
        self.node = RedisNode("app@sentinel:1", locate=lambda: ("127.0.0.1", self.held_by[-1].port))
        rings = frozenset([ring_mark([first.address])])
        self._keeper = Keeper(self.node, Charter(key=guard_key(None), ttl=LIFE, rings=rings, rules=frozenset([MARK])))
        self._keeper.begin(1, time.monotonic(), known=True)
        self._mailbox = Mailbox(self.node, lambda: None, Naming(), self._keeper)

    def passed(self, position: int, *keys: bytes) -> bool:
        """Tell whether W has passed a position, before which these keys changed; to be asked again until it has."""
        now = time.monotonic()
        if keys:
            self._mailbox.put(dict.fromkeys(keys, 0.0))
        self._mailbox.advance(position)
        self._mailbox.step(now, MagicMock(), vouched_until=now + 10)
        return self._mailbox.acknowledged >= position

    def vouch(self) -> None:
        """Write the record, which has its whole life before it then."""
        self._keeper.miss()
        wait_until(lambda: self.passed(0) and not self._keeper.is_due(time.monotonic()), 60, "the record")

    def close(self) -> None:
        """End what was begun."""
        self._mailbox.close()
        self.node.close()


@pytest.mark.parametrize("replicated", [True, False], ids=["with its record", "without"])
def test_position_waits_for_the_former_primary(replicated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """W does not pass a change before the record of the former primary has run out, though the new one has been told.

    Guard: the daemon knows which run of which server it has vouched for last.
    """
    monkeypatch.setattr(keeper, "SUCCESSOR_WAIT", 0.0)  # nobody else has had the slot
    with contextlib.ExitStack() as stack:
        former, successor = (stack.enter_context(RedisServer(*PROMPT)) for _ in range(2))
        if replicated:
            successor.ask(f"REPLICAOF 127.0.0.1 {former.port}")
            wait_until(lambda: "master_link_status:up" in successor.ask("INFO replication"), 60, "a link")
        office = Office(former)
        stack.callback(office.close)
        client: Any = open_store(f"{former.url}?guard=daemon")
        stack.callback(client.close)
        wait_until(lambda: office.passed(10), 60, "W")
        lease = client.lease_get(KEY, 60, 0, MARK)
        assert isinstance(lease, Lease)
        assert client.lease_set(lease, FLAGS, b"old", 60) == Stored()
        read = client.reader(10, 0, FLAGS, MARK)
        assert read(KEY) == b"old"
        office.vouch()
        if replicated:
            wait_until(lambda: holds(successor, guard_key(None).decode()), 60, "replication")
            successor.ask("REPLICAOF NO ONE")
        office.held_by.append(successor)
        office.node.close()
        assert read(KEY) == b"old"
        assert not office.passed(20, KEY)
        began, seen = time.monotonic(), 0
        while not office.passed(20):
            with contextlib.suppress(GuardError):
                seen += read(KEY) == b"old"
            time.sleep(0.02)  # a reader that asks all the time
            assert time.monotonic() - began < 60
        assert seen
        with pytest.raises(GuardError):
            read(KEY)
