"""Nothing that the lab started outlives the process that started it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from leasecache.lab import wait_until
from leasecache.lab.warden import alive, processes, tree

REPORT = """
import json, os, sys, time
from leasecache.lab import *
from leasecache.lab.warden import tree

def report(*servers):
    pids = [process.pid for server in servers for process in tree(server.pid)]
    directories = [str(server.directory) for server in servers]
    print(json.dumps({"pids": pids, "directories": directories, "warden": Warden.of_this_process().pid}), flush=True)
"""


@dataclass(frozen=True)
class Traces:
    """What a lab process has started."""

    pids: list[int]
    directories: list[str]
    warden: int

    def gone(self) -> bool:
        return not alive([*self.pids, self.warden]) and not any(map(os.path.exists, self.directories))


@contextmanager
def lab_process(body: str) -> Iterator[tuple[subprocess.Popen[str], Traces]]:
    """Run `body` in a Python of its own, until it has reported; it must report before anything else."""
    command = [sys.executable, "-c", REPORT + body]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield process, Traces(**json.loads(process.stdout.readline()))
        finally:
            process.kill()


def assert_all_goes(traces: Traces) -> None:
    assert len(traces.pids) >= len(traces.directories) > 0
    wait_until(traces.gone, 60, "end of servers and directories")


EVERY_SERVER = """
primary = PostgresServer().start()
standby, paused = primary.standby().start(), primary.standby("paused").start()
memcached, redis = MemcachedServer().start(), RedisServer().start()
paused.pause()
memcached.pause()
report(primary, standby, paused, memcached, redis)
time.sleep(600)
"""


def test_servers_die_with_a_killed_lab_process() -> None:
    """After SIGKILL of their owner, all servers end, paused ones too, and their directories go."""
    with lab_process(EVERY_SERVER) as (process, traces):
        assert len(traces.pids) > 15
        process.kill()
        assert_all_goes(traces)


def test_a_forked_worker_does_not_keep_the_servers_alive() -> None:
    """A multiprocessing worker that outlives its killed parent lets the servers end."""
    body = """
import multiprocessing
memcached = MemcachedServer().start()
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
worker.start()
report(memcached)
print(worker.pid, flush=True)
time.sleep(600)
"""
    with lab_process(body) as (process, traces):
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
        assert_all_goes(traces)
        assert alive([worker])
        os.kill(worker, signal.SIGKILL)


def test_a_forked_worker_that_leaves_the_with_block_ends_nothing() -> None:
    """Only the owner closes: a child that unwinds through the context manager leaves the server running."""
    body = """
with MemcachedServer() as memcached:
    report(memcached)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print(memcached.ask("version"), flush=True)
"""
    with lab_process(body) as (process, traces):
        assert process.stdout is not None
        assert process.stdout.readline().startswith("VERSION")
        assert process.wait(60) == 0
        assert traces.gone()


def test_a_lab_process_killed_during_initdb_leaves_nothing() -> None:
    """A kill in the middle of a first start ends initdb and removes the half-made directory."""
    body = """
class Impatient(PostgresServer):
    def prepare(self):
        import threading
        threading.Thread(target=super().prepare, daemon=True).start()
        wait_until(lambda: (self.data / "base").exists(), 60, "initdb at work")
        report(self)
        time.sleep(600)
Impatient().start()
"""
    with lab_process(body) as (process, traces):
        process.kill()
        assert_all_goes(traces)


def test_ctrl_c_reaches_the_owner_alone() -> None:
    """SIGINT to the terminal's process group leaves the servers to their owner, who can still use them."""
    body = """
try:
    with MemcachedServer() as memcached:
        try:
            report(memcached)
            time.sleep(600)
        except KeyboardInterrupt:
            print(memcached.ask("version"), flush=True)
finally:
    print("closed", flush=True)
"""
    with lab_process(body) as (process, traces):
        assert process.stdout is not None
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline().startswith("VERSION")
        assert "closed" in process.stdout.read()
        assert traces.gone()


def test_a_normal_exit_waits_until_forgotten_servers_are_gone() -> None:
    """A process that ends without closing its servers has none left when it has ended."""
    with lab_process("report(PostgresServer().start(), MemcachedServer().start())") as (process, traces):
        assert process.wait(60) == 0
        assert traces.gone()


def test_nothing_starts_without_a_warden() -> None:
    """When the warden has been killed, running servers still close cleanly, and new ones refuse to start."""
    body = """
import signal
with MemcachedServer() as running:
    report(running)
    os.kill(Warden.of_this_process().pid, signal.SIGKILL)
    wait_until(lambda: not tree(Warden.of_this_process().pid), 60, "end of the warden")
    try:
        MemcachedServer().start()
    except ServerError:
        print("refused", flush=True)
"""
    with lab_process(body) as (process, traces):
        assert process.stdout is not None
        assert process.stdout.read() == "refused\n"
        assert traces.gone()


def test_a_tree_is_listed_parents_first() -> None:
    """The tree of this process holds a grandchild after its parent, and neither strangers nor zombies."""
    with subprocess.Popen(["/bin/sh", "-c", "sleep 600 & wait"]) as shell:
        grandchild = wait_until(lambda: [row for row in processes() if row.parent == shell.pid], 60, "sleep")[0]
        assert [row.pid for row in tree(shell.pid)] == [shell.pid, grandchild.pid]
        shell.kill()
        wait_until(lambda: not tree(shell.pid), 60, "zombie")
        os.kill(grandchild.pid, signal.SIGKILL)
