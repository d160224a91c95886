"""What goes wrong in a simulation, chosen by its dice; every fault heals by itself after a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.database import Standby
from tests.simulation.oracle import Oracle

if TYPE_CHECKING:
    from tests.simulation.world import World

DURATIONS = (0.05, 0.5, 3.0, 30.0)  # s


class Faults:
    """Disturbs servers, network and processes."""

    def __init__(self, world: World, oracle: Oracle) -> None:
        self._world, self._oracle = world, oracle
        self.kernel = world.kernel
        self.random = world.kernel.random
        everywhere: list[Callable[[], None]] = [
            self.kill_daemon,
            self.kill_daemon,
            self.stop_daemon,
            self.freeze_daemon,
            self.restart_node,
            self.stop_node,
            self.cut_node_from_daemon,
            self.cut_node_from_daemon,
            self.cut_node_from_clients,
            self.lose_replies,
            self.evict,
            self.evict_record,
            self.clear,
            self.end_walsender,
            self.hold_commits,
            self.restart_database,
        ]
        if world.standbys:
            everywhere += [self.crash_standby, self.crash_standby, self.delay_replay]
        if world.loses_slots:
            everywhere.append(self.lose_slot)
        # a few kinds at a time: what is rare among all of them comes often in some simulations
        kinds = self.random.sample(everywhere, k=self.random.randrange(1, len(everywhere)))
        self._kinds = [getattr(self, name) for name in world.plan.faults] or kinds
        self._pause = self.random.choice([0.3, 2.0, 10.0])

    def run(self) -> None:
        """Disturb until the end."""
        while True:
            self.kernel.sleep(self._pause * 2 * self.random.random())
            if self._oracle.over:
                return
            fault = self.random.choice(self._kinds)
            self._oracle.note("FAULT", fault.__name__)
            self._oracle.counts[fault.__name__] += 1
            self.kernel.spawn(fault)

    def heal(self) -> None:
        """End every fault that lasts."""
        for node in self._world.nodes:
            node.cut_off = frozenset()
            node.loses_replies = False
            if not node.up:
                node.restart()
            node.resume()
        for standby in self._world.standbys:
            standby.lag, standby.paused = 0.01, False
        for database in (self._world.primary, *self._world.standbys):
            database.come_up()
        for process in self._world.processes:
            process.thaw()
        self._world.writer.pause = 0.0

    def _while(self) -> None:
        self._wait(self.random.choice(DURATIONS) * self.random.random())

    def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until everything is to heal."""
        until = self.kernel.now + seconds
        while self.kernel.now < until and not self._oracle.over:
            self.kernel.sleep(min(0.5, until - self.kernel.now))

    def kill_daemon(self) -> None:
        """End a daemon by SIGKILL."""
        self.random.choice(self._world.processes).kill()

    def stop_daemon(self) -> None:
        """Ask a daemon to end."""
        self.random.choice(self._world.processes).terminate()

    def freeze_daemon(self) -> None:
        """Let a daemon stand still."""
        process = self.random.choice(self._world.processes)
        process.freeze()
        self._while()
        process.thaw()

    def restart_node(self) -> None:
        """Kill a cache node and start it again, empty."""
        node = self.random.choice(self._world.nodes)
        node.kill()
        self._while()
        node.restart()

    def stop_node(self) -> None:
        """Stop a cache node by SIGSTOP; it carries out later what it was asked."""
        node = self.random.choice(self._world.nodes)
        node.stopped = True
        self._while()
        node.resume()

    def cut_node_from_daemon(self) -> None:
        """Let the daemon not reach a node that clients reach."""
        self._cut("daemon")

    def cut_node_from_clients(self) -> None:
        """Let clients not reach a node that the daemon reaches."""
        self._cut("clients")

    def _cut(self, who: str) -> None:
        node = self.random.choice(self._world.nodes)
        node.cut_off |= {who}
        self._while()
        node.cut_off -= {who}

    def lose_replies(self) -> None:
        """Carry out what is asked, and lose the answers."""
        node = self.random.choice(self._world.nodes)
        node.loses_replies = True
        self._while()
        node.loses_replies = False

    def evict(self) -> None:
        """Drop some items of a node."""
        engine = self.random.choice(self._world.nodes).engine
        for key in [key for key in engine._items if self.random.random() < 0.3]:
            engine._drop(key)

    def evict_record(self) -> None:
        """Drop the guard record of a node."""
        self.random.choice(self._world.nodes).engine._drop(self._world.guard)

    def clear(self) -> None:
        """Clear the cache."""
        self.random.choice(self._world.applications).clear()

    def end_walsender(self) -> None:
        """Terminate the backends that stream, at the server's side."""
        for slot in self._world.source.slots.values():
            if slot.active is not None:
                slot.active.terminate()

    def hold_commits(self) -> None:
        """Let commits wait for a synchronous standby."""
        self._world.writer.pause = 3.0
        self._while()
        self._world.writer.pause = 0.0

    def restart_database(self) -> None:
        """Crash the primary."""
        self._world.primary.crash()
        self._while()
        self._world.primary.come_up()

    def crash_standby(self) -> None:
        """Crash a standby: for a while it shows what it showed earlier."""
        standby: Standby = self.random.choice(self._world.standbys)
        self._oracle.rewind()
        standby.crash(back=self.random.randrange(6))
        self.kernel.sleep(0.1 * self.random.random())
        standby.paused = True
        standby.come_up()
        self.kernel.sleep(self.random.random())
        standby.paused = False

    def delay_replay(self) -> None:
        """Let a standby fall behind."""
        standby: Standby = self.random.choice(self._world.standbys)
        standby.lag = 2.0
        self._while()
        standby.lag = 0.01

    def lose_slot(self) -> None:
        """Let the server give up the log that the slot needs, or drop the slot."""
        source = self._world.source
        for name, slot in list(source.slots.items()):
            slot.lost = True
            if slot.active is not None:
                slot.active.terminate()
            if self.random.random() < 0.5:
                del source.slots[name]
