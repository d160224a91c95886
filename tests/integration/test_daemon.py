"""The daemon on real servers: what changes reach the cache, and that none is lost."""

import signal

import pytest

from leasecache.lab import wait_until
from tests.fix_daemon import WITHIN, World

HEARD = "select extract(epoch from reply_time)::float8 from pg_stat_replication where application_name = 'leasecache'"


@pytest.mark.parametrize(
    ("before", "change", "gone"),
    [
        ("", "insert into media values (1, 'a')", ("media:1",)),
        ("insert into media values (1, 'a')", "update media set title = 'b'", ("media:1",)),
        ("insert into media values (1, 'a')", "update media set id = 2", ("media:1", "media:2")),
        ("insert into media values (1, 'a')", "delete from media", ("media:1",)),
        ("insert into comments values (1, 1)", "update comments set body = 'b'", ("comments:1",)),
        ("insert into comments values (1, 1)", "update comments set media_id = 2", ("comments:1", "comments:2")),
        ("insert into comments values (1, 1)", "delete from comments", ("comments:1",)),
        ("insert into tags values (1, 'a')", "update tags set name = 'b'", ("tags:1",)),
        ("insert into tags values (1, 'a')", "update tags set media_id = 2", ("tags:1", "tags:2")),
        ("insert into tags values (1, 'a')", "delete from tags", ("tags:1",)),
        ("", "insert into tags values (null, 'a')", ("tags:!",)),
    ],
)
def test_a_change_reaches_the_cache(world: World, before: str, change: str, gone: tuple[str, ...]) -> None:
    """Insert, update and delete invalidate the keys of the old and new row, under every identity, and no other key."""
    if before:
        world.write(before)
    world.daemon.start().streaming()
    world.await_confirmed(world.written())
    world.fill(*gone, "media:99", "comments:99", "tags:99")
    world.write(change)
    world.await_gone(*gone)
    assert all(map(world.cached, ("media:99", "comments:99", "tags:99")))


def test_what_is_rolled_back_invalidates_nothing(world: World) -> None:
    """Neither a rolled back transaction nor a rolled back savepoint touches a key."""
    world.daemon.start().streaming()
    world.fill("media:1", "media:2", "media:3")
    with world.primary.connect(world.database) as connection:
        connection.execute("begin; insert into media values (1, 'a'); rollback")
        connection.execute("begin; insert into media values (3, 'a'); savepoint s; insert into media values (2, 'a')")
        connection.execute("rollback to s; commit")
    world.await_gone("media:3")
    assert world.cached("media:1")
    assert world.cached("media:2")


def test_killed_and_restarted(world: World) -> None:
    """What is written while the daemon is dead is invalidated when it is back."""
    keys = [f"media:{i}" for i in range(1000)]
    world.daemon.start().streaming()
    world.fill(*keys)
    world.daemon.kill()
    world.write("insert into media select i, 'a' from generate_series(0, 999) i")
    world.daemon.start()
    world.await_gone(*keys)
    world.await_confirmed(world.written())


def test_killed_while_writes_go_on(world: World) -> None:
    """A daemon killed in the middle of a stream of transactions loses none of them."""
    keys = [f"media:{i}" for i in range(1000)]
    world.daemon.start().streaming()
    world.fill(*keys)
    with world.primary.connect(world.database) as connection:
        for i in range(1000):
            connection.execute("insert into media values (%s, 'a')", [i])
            if i in (200, 600):
                world.daemon.kill()
                world.daemon.start()
    world.await_gone(*keys)


def test_killed_between_sending_and_acknowledging(world: World) -> None:
    """A batch that was sent and not answered is not acknowledged to the source, and is sent again after a restart."""
    world.write(f"alter database {world.database} set wal_sender_timeout = '3s'")  # so that reports are frequent
    world.catch_up()
    world.daemon.start().streaming()
    world.fill("media:1")
    world.memcached.pause()
    world.write("insert into media values (1, 'a')")
    written = world.written()
    wait_until(lambda: world.daemon.metric("pending_keys") == 1, WITHIN, "a batch under way")
    first = world.source.value(HEARD)
    wait_until(lambda: world.source.value(HEARD) > first + 1, WITHIN, "reports that could have acknowledged it")
    world.daemon.kill()
    assert world.confirmed() < written
    world.memcached.kill()  # what was in its buffers is gone as well
    world.memcached.start()
    world.fill("media:1")  # as a reader would that read before the write
    world.daemon.start()
    world.await_gone("media:1")
    world.await_confirmed(written)


def test_the_walsender_is_terminated(world: World) -> None:
    """A conversation that the server ends is followed by another one, and nothing is lost."""
    world.daemon.start().streaming()
    world.fill("media:1", "media:2")
    terminate = "select pg_terminate_backend(active_pid) from pg_replication_slots where active and database = %s"
    world.source.query(terminate, world.database)
    world.write("insert into media values (1, 'a')")
    world.await_gone("media:1")
    assert world.daemon.metric("reconnects_total") >= 1
    assert world.daemon.get("/readyz")[0] == 200
    assert world.cached("media:2")


def test_a_cache_node_is_away(world: World) -> None:
    """While a node is away W is held, the stream goes on, and W follows when the node is back."""
    world.daemon.start().streaming()
    world.await_confirmed(world.written())
    world.memcached.kill()
    before = world.confirmed()
    world.write("insert into media select i, 'a' from generate_series(1, 100) i")
    written = world.written()
    wait_until(lambda: world.daemon.metric("node_errors_total") >= 3, WITHIN, "attempts")
    assert world.daemon.metric("pending_keys") == 100
    assert before <= world.confirmed() < written
    world.memcached.restart()
    world.await_confirmed(written)
    assert world.daemon.metric("invalidations_total") == 100
    assert "event=node-down" in world.daemon.log()
    assert "event=node-up" in world.daemon.log()


def test_the_server_hears_from_us_while_w_is_held(world: World) -> None:
    """With a node silent for longer than wal_sender_timeout, the server does not give us up."""
    world.write(f"alter database {world.database} set wal_sender_timeout = '5s'")
    world.catch_up()
    world.daemon.start().streaming()
    world.memcached.pause()
    world.write("insert into media values (1, 'a')")
    wait_until(lambda: world.daemon.metric("pending_keys") == 1, WITHIN, "a held key")
    first = world.source.value(HEARD)
    wait_until(lambda: world.source.value(HEARD) > first + 7, WITHIN, "seven seconds of replies")
    assert world.daemon.metric("reconnects_total") == 0
    world.memcached.resume()
    world.await_confirmed(world.written())


def test_an_idle_slot_advances(world: World) -> None:
    """Writes that concern no rule are acknowledged, so that the server need not keep its log."""
    world.daemon.start().streaming()
    world.write("insert into unpublished select generate_series(1, 1000)")
    world.await_confirmed(world.written())
    assert world.daemon.metric("transactions_total") == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_drains_when_told_to_stop(world: World, how: signal.Signals) -> None:
    """A signal lets it finish and acknowledge what is in flight, and exit with 0."""
    world.daemon.start().streaming()
    world.fill("media:1")
    world.memcached.pause()
    world.write("insert into media values (1, 'a')")
    wait_until(lambda: world.daemon.metric("pending_keys") == 1, WITHIN, "a held key")
    world.daemon.process.send_signal(how)
    world.memcached.resume()
    assert world.daemon.process.wait(WITHIN) == 0, world.daemon.log()
    assert "drained=True" in world.daemon.log()
    world.fill("media:1")
    world.daemon.start().streaming()
    world.await_confirmed(world.written())
    assert world.cached("media:1"), "what had been acknowledged was delivered again"


def test_a_node_that_stays_away_does_not_stop_the_end(world: World) -> None:
    """Draining gives up in time; what was not acknowledged is delivered to the next daemon."""
    world.daemon.start().streaming()
    world.fill("media:1")
    world.memcached.pause()
    world.write("insert into media values (1, 'a')")
    wait_until(lambda: world.daemon.metric("pending_keys") == 1, WITHIN, "a held key")
    assert world.daemon.terminate() == 0
    assert "drained=False" in world.daemon.log()
    world.memcached.resume()
    world.daemon.start()
    world.await_gone("media:1")


def test_truncate_is_owned_up_to(world: World) -> None:
    """Keys of truncated rows are unknown: an error names the table, readiness ends, and the daemon goes on."""
    world.daemon.start().streaming()
    world.fill("media:1")
    assert world.daemon.get("/readyz") == (200, "ready\n")
    world.write("truncate media")
    world.write("insert into media values (1, 'a')")
    world.await_gone("media:1")
    status, body = world.daemon.get("/readyz")
    assert (status, "public.media" in body, "truncate" in body) == (503, True, True)
    assert "level=error event=unserved reason=truncate table=public.media" in world.daemon.log()


def test_pages(world: World) -> None:
    """The status server answers on the port that it logged."""
    world.daemon.start().streaming()
    world.write("insert into media values (1, 'a'), (2, 'b')")
    wait_until(lambda: world.daemon.metric("invalidations_total") == 2, WITHIN, "invalidation")
    assert world.daemon.get("/healthz") == (200, "ok\n")
    assert world.daemon.get("/")[0] == 200
    assert '"streaming": true' in world.daemon.get("/status.json")[1]
    assert world.daemon.get("/nothing")[0] == 404
    metrics = {
        "transactions_total": 1,
        "rows_total": 2,
        "keys_total": 2,
        "batches_total": 1,
        "gate_wait_seconds_count": 1,
    }
    assert {name: world.daemon.metric(name) for name in metrics} == metrics
    wait_until(lambda: world.daemon.metric("invalidation_latency_seconds_count") == 1, WITHIN, "latency")
