"""The daemon as a process in the simulation: the real code, with fakes in the place of clock, sockets and servers."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from leasecache.errors import ConfigError, GapError
from tests.simulation.fakes import Descriptors, FakeExecutor, FakeOs, FakeSelect, FakeThreading, FakeTime
from tests.simulation.kernel import Kernel, Signal, current_owner
from tests.simulation.oracle import Oracle
from tests.simulation.postgres import Conversation, FakeConnection

PACKAGE = "leasecache.invalidation."


class Recorder:
    """In the place of the Monitor: what it is told goes into the history."""

    QUIET = ("gate_passed", "gate_held", "gate_answered", "received", "completed", "position", "invalidated", "reader")

    def __init__(self, oracle: Oracle, name: str) -> None:
        self._oracle, self._name = oracle, name

    def crashed(self, error: BaseException) -> None:
        """Take what the daemon did not expect for a fault of the daemon."""
        raise self._oracle.broken(f"{self._name} did not expect {type(error).__name__}: {error}") from error

    def __getattr__(self, told: str) -> Callable[..., None]:
        def note(*args: object, **named: object) -> None:
            self._oracle.counts[told] += 1
            if told not in self.QUIET:
                words = [f"{arg:x}" if isinstance(arg, int) and arg > 2**32 else str(arg) for arg in args]
                self._oracle.note(self._name, f"{told} {' '.join(words)} {named or ''}")

        return note


class FakeLocks:
    """The module `fcntl`: a file is locked by the process that opened it, until it dies."""

    LOCK_EX, LOCK_NB, LOCK_UN, LOCK_SH = 2, 4, 8, 1

    def __init__(self) -> None:
        self.held: dict[str, tuple[Any, object]] = {}

    def flock(self, file: Any, flags: int) -> None:
        """Lock the file unless a living process has."""
        other, owner = self.held.get(file.name, (file, None))
        if other is not file and not other.closed and owner is not current_owner():
            raise BlockingIOError(f"{file.name} is locked")
        self.held[file.name] = (file, current_owner())

    def release(self, owner: object) -> None:
        """Let go of what a process held."""
        for name, (file, holder) in list(self.held.items()):
            if holder is owner:
                file.close()
                del self.held[name]


class NoDrift:
    """In the place of the thread that looks at the catalogues, which has simulations of its own."""

    finished = 0

    def __init__(self, *args: object, **named: object) -> None:
        """Take anything."""

    def losses(self) -> list[object]:
        """Have lost nothing."""
        return []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **named: None


class Machine:
    """What all processes of a simulation share, and the patches that put it in place."""

    def __init__(self, kernel: Kernel, oracle: Oracle, find: Callable[[str], Any], answer: Callable[..., Any]) -> None:
        """`find` returns the database node of a dsn."""
        self.kernel, self.oracle = kernel, oracle
        self.descriptors = Descriptors()
        self.connections: list[Any] = []
        self.locks = FakeLocks()
        self._find, self._answer = find, answer

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Put the fakes where the daemon's modules look."""
        kernel = self.kernel
        fakes: dict[str, Any] = {
            "time": FakeTime(kernel),
            "select": FakeSelect(kernel, self.descriptors),
            "os": FakeOs(kernel, self.descriptors),
            "fcntl": self.locks,
            "threading": FakeThreading(kernel),
            "find_primary": lambda *args: None,
            "ThreadPoolExecutor": lambda *args, **named: FakeExecutor(kernel),
            "Replication": self._converse,
            "connect": self._connect,
            "fresh_number": lambda *args: kernel.random.getrandbits(63) or 1,
            "event": self._log,
            "Watch": NoDrift,
        }
        patches = [
            mock.patch.object(module, name, fake)
            for path, module in list(sys.modules.items())
            if path.startswith(PACKAGE)
            for name, fake in fakes.items()
            if name in vars(module)
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.stop()

    def _converse(self, dsn: str, *args: Any, **named: Any) -> Conversation:
        made = Conversation(self._find(dsn), self.descriptors, self._answer)
        made.told = self.oracle.publish
        self.connections.append(made)
        return made

    def _connect(self, dsn: str, **named: Any) -> FakeConnection:
        made = FakeConnection(self._find(dsn), self.descriptors, self._answer)
        self.connections.append(made.pgconn)
        return made

    def _log(self, level: int, name: str, **fields: object) -> None:
        if level >= logging.INFO:
            self.oracle.note("log", f"{name} {fields}")

    def clean_up(self, owner: object) -> None:
        """Do what an operating system does for a process that died."""
        self.locks.release(owner)
        for connection in [each for each in self.connections if each.owner is owner]:
            if not connection.closed:
                connection.close()
            self.connections.remove(connection)


class Process:
    """One daemon and whoever starts it again."""

    def __init__(self, machine: Machine, name: str, make: Callable[[Recorder, Path], Any], directory: Path) -> None:
        """`make` returns a daemon with `run` and `stop`."""
        self._machine, self.name, self._make, self._directory = machine, name, make, directory
        self.kernel = machine.kernel
        self._owner: object = None
        self.daemon: Any = None
        self.ended = Signal()
        self.wanted = True
        self.kernel.spawn(self._supervise)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._owner is not None

    def _supervise(self) -> None:
        kernel = self.kernel
        while True:
            if self.wanted and not self.alive:
                self._owner = object()
                self._machine.oracle.note(self.name, "starts")
                kernel.spawn(self._live, owner=self._owner)
            kernel.wait((self.ended,), 1.0)
            kernel.sleep(kernel.random.choice([0.05, 1.0, 5.0]) * kernel.random.random())

    def _live(self) -> None:
        owner = self._owner
        try:
            self.daemon = self._make(Recorder(self._machine.oracle, self.name), self._directory)
            self.daemon.run()
            self._machine.oracle.note(self.name, "ended")
        except (ConfigError, GapError) as error:
            self._machine.oracle.note(self.name, f"gave up: {error}")
        self.kernel.spawn(self._bury, owner)

    def _bury(self, owner: object) -> None:
        self.kernel.kill(owner)
        self._machine.clean_up(owner)
        if self._owner is owner:
            self._owner = None
            self.ended.notify(self.kernel)

    def kill(self) -> None:
        """End it by SIGKILL, wherever it is."""
        if self.alive:
            self._machine.oracle.note(self.name, "killed")
            self._bury(self._owner)

    def freeze(self) -> None:
        """Let it stand still, as a virtual machine that is moved does."""
        if self.alive:
            self._machine.oracle.note(self.name, "frozen")
            self.kernel.freeze(self._owner)

    def thaw(self) -> None:
        """Let it go on; for its clock time has passed."""
        self.kernel.thaw(self._owner)

    def terminate(self) -> None:
        """Ask it to end."""
        if self.alive and self.daemon is not None:
            self._machine.oracle.note(self.name, "told to stop")
            self.daemon.stop()
