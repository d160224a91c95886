"""The warden: a small process that outlives the lab process and ends whatever it left behind.

Each lab process has one. It reads a pipe whose only writer is the lab process, one line per event:

    process PID SIGNAL    a server runs; to end it politely, send SIGNAL
    gone PID              that server has ended
    directory PATH        PATH is about to be created
    removed PATH          PATH is gone

The kernel closes the pipe when the lab process ends, by whatever means; at end of file the warden ends the
process trees that are still listed and removes the directories. It runs this file as a script, with nothing but
the standard library, so that it is there within milliseconds.
"""

import atexit
import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

GRACE = 5.0  # s that a process tree has to end by itself, before SIGKILL


class Process(NamedTuple):
    """One row of the process table; `state` is the letter that ps(1) shows (T stopped, Z zombie)."""

    pid: int
    parent: int
    state: str


def processes() -> list[Process]:
    """List the processes of this machine that we may look at."""
    return list(_from_proc() if sys.platform == "linux" else _from_ps())


def _from_proc() -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                state, parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
                yield Process(int(entry.name), int(parent), state)


def _from_ps() -> Iterator[Process]:
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,state="], capture_output=True, text=True, check=True).stdout
    for pid, parent, state in re.findall(r"(\d+)\s+(\d+)\s+(\S)", listing):
        yield Process(int(pid), int(parent), state)


def tree(root: int) -> list[Process]:
    """List the process `root` and its descendants, parents first; zombies are left out, for they hold nothing."""
    table = [process for process in processes() if process.state != "Z"]
    found = [process for process in table if process.pid == root]
    for ancestor in found:
        found.extend(process for process in table if process.parent == ancestor.pid)
    return found


def stopped(process: Process) -> bool:
    """Tell whether SIGSTOP has taken effect: on Linux in every thread, for the signal reaches them one by one."""
    threads = Path(f"/proc/{process.pid}/task")
    if not threads.is_dir():
        return process.state in "Tt"
    with contextlib.suppress(OSError):  # a thread ended while we looked
        return all(_state(thread) in "Tt" for thread in threads.iterdir())
    return False


def _state(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]


def alive(pids: Iterable[int]) -> bool:
    """Tell whether any of these processes still runs (or is stopped)."""
    wanted = set(pids)
    return any(process.pid in wanted and process.state != "Z" for process in processes())


def send(pids: Iterable[int], number: int) -> None:
    """Signal the processes that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end(roots: dict[int, int], grace: float = GRACE) -> None:
    """End the process trees of `roots`, a map of process id to polite signal; SIGKILL after `grace` seconds.

    The tree is listed before anything is signalled: a Postgres backend is in a session of its own, so once its
    postmaster has died nothing leads to it any more.
    """
    families = {root: [process.pid for process in tree(root)] for root in roots}
    members = [pid for family in families.values() for pid in family]
    for root, number in roots.items():
        send(families[root][:1], number)
    send(members, signal.SIGCONT)
    _await_death(members, grace)
    send(members, signal.SIGKILL)
    _await_death(members, grace)


def _await_death(pids: list[int], within: float) -> None:
    deadline = time.monotonic() + within
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.005)


def remove(directory: Path) -> None:
    """Delete the directory of a server that has ended, and the System V memory that a killed Postgres left."""
    for lock in directory.glob("*/postmaster.pid"):
        _release_shared_memory(lock.read_text().splitlines())
    shutil.rmtree(directory, ignore_errors=True)


def _release_shared_memory(lock: list[str]) -> None:
    """Remove the segment named on line 7 of postmaster.pid ("key id"), as the postmaster does on a clean exit."""
    if len(lock) > 6 and len(lock[6].split()) == 2:
        ctypes.CDLL(None).shmctl(int(lock[6].split()[1]), 0, None)  # 0 = IPC_RMID, on Linux and on macOS


class Warden:
    """Guard the servers and directories of this process; get the one there is by `Warden.of_this_process()`."""

    _current: ClassVar["Warden | None"] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self.pipe = self._process.stdin
        atexit.register(self.close)

    @classmethod
    def of_this_process(cls) -> "Warden":
        """Return the warden of the calling process; start it if there is none."""
        with cls._lock:
            cls._current = cls._current or cls()
            return cls._current

    @property
    def pid(self) -> int:
        """Return the process id of the warden."""
        return self._process.pid

    def tell(self, event: str, *words: object) -> None:
        """Send one event; a single write of less than PIPE_BUF bytes is never torn.

        A warden that somebody killed is missed only when a server is started, which fails then.
        """
        with contextlib.suppress(BrokenPipeError):
            self.pipe.write(" ".join([event, *map(str, words)]).encode() + b"\n")

    def close(self) -> None:
        """End everything that is still listed, and return when it is gone."""
        self.pipe.close()
        self._process.wait()

    @classmethod
    def _before_fork(cls) -> None:
        cls._lock.acquire()

    @classmethod
    def _after_fork_in_parent(cls) -> None:
        cls._lock.release()

    @classmethod
    def _after_fork_in_child(cls) -> None:
        """Let go of the pipe: a worker that outlives the lab process must not keep its servers alive."""
        if cls._current is not None:
            cls._current.pipe.close()
            atexit.unregister(cls._current.close)
        cls._current = None
        cls._lock.release()


def _watch() -> None:
    """Follow the events on standard input until its end, then end and remove what is left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    running: dict[int, int] = {}
    directories: set[str] = set()
    for line in sys.stdin:
        event, _, rest = line.rstrip("\n").partition(" ")
        if event == "process":
            pid, number = rest.split()
            running[int(pid)] = int(number)
        elif event == "gone":
            running.pop(int(rest), None)
        elif event == "directory":
            directories.add(rest)
        elif event == "removed":
            directories.discard(rest)
    end(running)
    for directory in directories:
        remove(Path(directory))


if __name__ == "__main__":
    _watch()
else:
    os.register_at_fork(
        before=Warden._before_fork,
        after_in_parent=Warden._after_fork_in_parent,
        after_in_child=Warden._after_fork_in_child,
    )
