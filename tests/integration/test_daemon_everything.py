"""What touches more than can be listed gives up everything that is guarded, and what was named all the same."""

from collections.abc import Iterator

import pytest

from leasecache.lab import wait_until
from leasecache.messages import build_message
from tests.fix_daemon import WITHIN, World
from tests.integration.test_daemon_recovery import Shop, more

EMIT = "select pg_logical_emit_message(true, 'leasecache', %s::text)"


@pytest.fixture
def shop(primary_world: World) -> Iterator[Shop]:
    """An application and a daemon that streams, both on one row of many."""
    for first in range(1, 300, 100):
        primary_world.write(f"insert into media select i, 'first' from generate_series({first}, {first} + 99) i")
    made = Shop(primary_world)
    more(primary_world.daemon, "[limits]\ntransaction_keys = 100\n").start().streaming()
    made.await_state("fresh")
    yield made
    made.cache.close()


def bumped(shop: Shop, statement: str, *parameters: object) -> None:
    """Run a statement, and wait until what was cached before it is no longer believed."""
    before = shop.generation()
    shop.world.write(statement, *parameters)
    wait_until(lambda: shop.generation() not in (before, None), WITHIN, f"a bump; {shop.world.daemon.log()}")


def test_what_gives_up_everything(shop: Shop) -> None:
    """Guard: the bump. Too many keys, TRUNCATE, a lost key and a message that says so make guarded values new at once.

    Within the limit nothing is bumped; and keys that a message names go as well, because a bump does not reach those of
    functions that are not guarded.
    """
    world = shop.world
    generation = shop.generation()
    world.write("update media set title = 'second' where id <= 100")
    shop.await_value("second")
    assert shop.generation() == generation
    world.fill("page:1")
    named = f"E{build_message({b'shop:page:1': 0}).parameters[0]!r}"
    bumped(shop, f"begin; update media set title = 'third'; {EMIT.replace('%s', named)}; commit")
    shop.await_value("third")
    world.await_gone("page:1")
    bumped(shop, "truncate tags")
    bumped(shop, EMIT, build_message({}, namespaces=["shop"]).parameters[0])
    world.write(EMIT, build_message({}, namespaces=["blog"]).parameters[0])
    world.await_confirmed(world.written())
    assert world.daemon.metric("generation_bumps_total") == 3
    assert world.daemon.metric("unserved_changes_total") == 3
