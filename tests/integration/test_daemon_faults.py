"""The daemon among real servers that are killed, cut off and filled up: nothing is lost, no guarded hit too old."""

import random
import resource
from pathlib import Path

import pytest

from leasecache.lab import wait_until
from tests.fix_daemon import SLOT, WITHIN, DaemonProcess, World
from tests.safety.storm import SOURCES, Options, storm


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_lost_in_a_storm(source: str) -> None:
    """A short storm; `make soak ARGS="--run storm"` is a long one.

    Guards: whatever the simulator's mutants take out of the daemon, and the verdict on guard records in the clients.
    """
    report = storm(Options(seconds=6, seed=random.SystemRandom().randrange(2**32), source=source, most=1.5))
    assert not report.violations, report.story()
    assert report.counts["fresh"] > 50, report.story()
    assert report.faults["kill_daemon"], report.story()


@pytest.mark.parametrize("postgres_version", [18], indirect=True)
def test_a_disk_that_is_full_holds_w(primary_world: World, tmp_path: Path) -> None:
    """What cannot be written to the journal holds W back; with room again, W passes the node that is away.

    Guard: `JournalError` keeps the keys, and their position, in memory.
    """
    world, room = primary_world, 20_000  # bytes: for the log, not for the journal
    with world.daemon.config.open("a") as config:
        config.write(f'[guard]\nttl = 2\n[journal]\ndirectory = "{tmp_path}"\n')
    world.daemon.start().streaming()
    world.write("insert into unpublished values (1)")
    world.await_confirmed(world.written())
    limit(world.daemon, room)
    world.memcached.pause()
    world.write("insert into media select i, 'a' from generate_series(1, 5000) i")
    written = world.written()
    wait_until(lambda: "event=journal-failed" in world.daemon.log(), WITHIN, f"a full disk; {world.daemon.log()}")
    assert world.confirmed() < written
    limit(world.daemon, resource.RLIM_INFINITY)
    world.await_confirmed(written)
    assert (tmp_path / SLOT).is_dir()
    world.memcached.resume()


def limit(daemon: DaemonProcess, size: int) -> None:
    """Let the daemon write files of at most `size` bytes from now on."""
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
