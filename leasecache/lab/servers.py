"""A real server on a free port of 127.0.0.1, in a temporary directory: its life from start to removal."""

import os
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

from leasecache.errors import LeasecacheError
from leasecache.lab import warden
from leasecache.lab.account import Account
from leasecache.lab.warden import Warden

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below the ports that Linux and macOS give to outgoing connections
ATTEMPTS = 20  # ports tried before giving up
START_WITHIN = 60.0  # s
STOP_WITHIN = 60.0  # s
TAIL = 15  # lines of the log in an error

# The shell tells the warden its own process id and then becomes the server under that id, so that there is no
# instant at which the lab process could die and leave a server that the warden has not heard of.
ANNOUNCE = 'echo "process $$ $0" && exec "$@" >&2'

T = TypeVar("T")
S = TypeVar("S", bound="Server")


class ServerError(LeasecacheError):
    """A server of the lab did not start, or ended when it should run; the message has the tail of its log."""


class PortTakenError(ServerError):
    """Another process took the port between our choice and the server's bind."""


def wait_until(condition: Callable[[], T | None], timeout: float, what: str) -> T:
    """Poll until `condition()` is true and return what it returned.

    `timeout` is in seconds. Raises TimeoutError that says "<what>: not within <timeout> s".
    """
    deadline, pause = time.monotonic() + timeout, 0.001
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return result


def free_port() -> int:
    """Choose a port of 127.0.0.1 that nothing listens on; somebody may take it before the caller does."""
    for port in secrets.SystemRandom().sample(PORTS, k=len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not _refused(probe, port):
                return port
    raise ServerError(f"every port of {HOST} from {PORTS.start} to {PORTS.stop - 1} is taken")


def _refused(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind((HOST, port))
    except OSError:
        return True
    return False


class Server(ABC):
    """Run one server; as a context manager, start it and in the end remove every trace of it.

    The first start chooses the port and creates the directory; both stay until `close`. A process that was forked
    from the owner may use the server, but its `close` does nothing.
    """

    polite: ClassVar[signal.Signals] = signal.SIGTERM  # finish cleanly
    abrupt: ClassVar[signal.Signals] = signal.SIGKILL  # end now; the data goes too

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.account = Account.for_servers()
        self._owner = os.getpid()
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line that runs the server in the foreground, on `self.port`."""

    @abstractmethod
    def ready(self) -> bool:
        """Tell whether this very process (not another one on its port) answers."""

    def prepare(self) -> None:  # noqa: B027 - most servers start from an empty directory
        """Fill the new data directory."""

    @property
    def address(self) -> str:
        """Return "host:port"."""
        return f"{HOST}:{self.port}"

    @property
    def directory(self) -> Path:
        """Return the temporary directory: `log`, and `data` that belongs to the server."""
        if self._directory is None:
            raise ServerError(f"{self.name} has not been started")
        return self._directory

    @property
    def data(self) -> Path:
        """Return the directory that belongs to the server."""
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """Return the process id, also of a server that died; raises ServerError when it was not started."""
        if self._process is None:
            raise ServerError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Tell whether the process exists; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self: S) -> S:
        """Start unless it runs and wait until it answers; after a stop or kill, on the same port with the same data.

        A first start that fails leaves nothing behind. Raises ServerError with the tail of the log.
        """
        if self._directory is None:
            try:
                self._first_start()
            except BaseException:
                self.close()
                raise
        elif not self.running:
            self._launch()
        return self

    def stop(self) -> None:
        """Shut down cleanly; raises TimeoutError when the server does not end."""
        if self.running:
            os.kill(self.pid, self.polite)
            wait_until(lambda: not self.running, STOP_WITHIN, f"clean shutdown of {self.name}")
        self._settle()

    def kill(self) -> None:
        """End every process of the server by SIGKILL, as a loss of power would."""
        if self.running:
            os.kill(self.pid, signal.SIGSTOP)  # no new children while we list them
            pids = [process.pid for process in warden.tree(self.pid)]
            warden.send(pids, signal.SIGKILL)
            wait_until(lambda: not self.running and not warden.alive(pids), STOP_WITHIN, f"death of {self.name}")
        self._settle()

    def restart(self) -> None:
        """Stop cleanly and start again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop every process of the server by SIGSTOP: it keeps its connections and answers nothing."""
        if not self.running:
            raise ServerError(f"{self.name} does not run")
        wait_until(self._stop_tree, STOP_WITHIN, f"pause of {self.name}")

    def _stop_tree(self) -> bool:
        """Send SIGSTOP to whatever runs still; a stopped parent adds no children, so this ends."""
        moving = [process.pid for process in warden.tree(self.pid) if not warden.stopped(process)]
        warden.send(moving, signal.SIGSTOP)
        return not moving

    def resume(self) -> None:
        """Let a paused server go on."""
        warden.send([process.pid for process in warden.tree(self.pid)], signal.SIGCONT)

    def close(self) -> None:
        """End the server at once, paused or not, and remove its directory."""
        if os.getpid() != self._owner or self._directory is None:
            return
        if self.running:
            warden.end({self.pid: self.abrupt})
        self._settle()
        warden.remove(self._directory)
        Warden.of_this_process().tell("removed", self._directory)
        self._directory = None
        self.port = 0

    def __enter__(self: S) -> S:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log(self) -> str:
        """Return what the server has written to its log since its last start."""
        with open(self.directory / "log", "rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def run(self, command: list[str], stdin: str = "") -> None:
        """Run a program on the data directory to its end; raises ServerError with the tail of what it said."""
        self._process = self._spawn(command, subprocess.PIPE)
        self._process.communicate(stdin.encode())
        status = self._process.returncode
        self._settle()
        if status:
            raise self._failure(f"{Path(command[0]).name} of {self.name} failed")

    def _first_start(self) -> None:
        self._directory = self.account.new_directory()
        self.prepare()
        for _ in range(ATTEMPTS):
            self.port = free_port()
            try:
                return self._launch()
            except PortTakenError as error:
                taken = error
        raise taken

    def _launch(self) -> None:
        self._settle()
        self._process = self._spawn(self.command(), subprocess.DEVNULL)
        try:
            wait_until(self._started, START_WITHIN, f"start of {self.name}")
        except TimeoutError as error:
            raise self._failure(str(error)) from None

    def _started(self) -> bool:
        if self.running:
            return self.ready()
        self._settle()
        taken = "address already in use" in self.log().lower()
        raise self._failure(f"{self.name} did not start", PortTakenError if taken else ServerError)

    def _failure(self, what: str, kind: type[ServerError] = ServerError) -> ServerError:
        tail = "\n".join(self.log().splitlines()[-TAIL:])
        return kind(f"{what}; the end of its log:\n{tail}")

    def _spawn(self, command: list[str], stdin: int) -> subprocess.Popen[bytes]:
        """Run a program as the account of the servers, its output in the log, known to the warden."""
        with open(self.directory / "log", "ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                ["/bin/sh", "-c", ANNOUNCE, str(int(self.abrupt)), *command],
                stdin=stdin,
                stdout=Warden.of_this_process().pipe,
                stderr=log,
                cwd=self.data,
                # without the PG* variables of the user, and with messages in English
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,  # ctrl-C in the terminal is for the owner, who then closes us
                **self.account.identity,
            )

    def _settle(self) -> None:
        """Tell the warden that the process has ended."""
        if self._process is not None:
            self._process.wait()
            Warden.of_this_process().tell("gone", self._process.pid)
            self._process = None
