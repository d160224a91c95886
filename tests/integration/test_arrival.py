"""Which transactions of a primary a recovery waits for: those that may have committed before it looked."""

import threading
import time
from contextlib import closing
from typing import LiteralString

import pytest

from leasecache.invalidation.lsn import parse_lsn
from leasecache.invalidation.recovery import SETTLED, Arrival
from leasecache.lab import wait_until
from tests.fix_servers import PostgresPair

_COMMITS: dict[str, list[LiteralString]] = {
    "commit": ["insert into t values (1)"],
    "commit prepared": ["begin; insert into t values (1); prepare transaction 'one'", "commit prepared 'one'"],
}


@pytest.mark.parametrize("how", list(_COMMITS))
def test_a_commit_that_waits_for_a_silent_standby_is_waited_for(fresh_pair: PostgresPair, how: str) -> None:
    """It is in the log, and the slot may be behind it; but nobody sees it, until the standby has answered.

    The guard is `_COMMITTING`: without it the transaction counts as one that will be streamed.
    """
    primary, standby = fresh_pair.primary, fresh_pair.standby
    primary.query("create table t (id int)")
    *before, last = _COMMITS[how]
    for statement in before:
        primary.query(statement)
    primary.synchronise(standby.name)
    wait_until(lambda: primary.value("select sync_state from pg_stat_replication") == "sync", 60, "synchronous standby")
    standby.pause()
    commit = threading.Thread(target=primary.query, args=[last])
    commit.start()
    waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    wait_until(lambda: primary.value(waits) == 1, 60, "a commit that waits")
    with closing(Arrival([primary.dsn()], parse_lsn(primary.current_lsn()))) as arrival:
        until, missing = time.monotonic() + 5 * SETTLED, True
        while missing and time.monotonic() < until:
            missing = arrival.missing() is not None
        standby.resume()
        commit.join(60)
        assert missing
        wait_until(lambda: arrival.missing() is None, 60, "the commit to be seen")
    assert primary.value("select count(*) from t") == 1


@pytest.mark.parametrize("left", ["open", "prepared"])
def test_a_transaction_that_does_not_commit_is_not_waited_for(fresh_pair: PostgresPair, left: str) -> None:
    """Its commit will be streamed, whenever it comes."""
    primary = fresh_pair.primary
    primary.query("create table t (id int)")
    with primary.connect() as connection:
        connection.execute("begin; insert into t values (1)")
        if left == "prepared":
            connection.execute("prepare transaction 'left'")
        with closing(Arrival([primary.dsn()], parse_lsn(primary.current_lsn()))) as arrival:
            assert arrival.missing() is not None
            wait_until(lambda: arrival.missing() is None, 60, "it to be settled")
        connection.execute("rollback prepared 'left'" if left == "prepared" else "rollback")
