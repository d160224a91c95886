"""What stands in for the modules time, select, os and concurrent.futures in the code that is simulated."""

import math
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from greenlet import GreenletExit

from tests.simulation.kernel import EPOCH, Kernel, Signal, current_owner

POLLED = select.POLLIN


class Descriptor:
    """Something that can be waited on."""

    def __init__(self) -> None:
        self.signal = Signal()
        self.readable = False

    def announce(self, kernel: Kernel, readable: bool = True) -> None:
        """Become readable, or not."""
        self.readable = readable
        if readable:
            self.signal.notify(kernel)


class Descriptors:
    """The table of open descriptors: numbers as the code under test wants them."""

    def __init__(self) -> None:
        self._open: dict[int, Descriptor] = {}
        self._next = 1_000

    def add(self, descriptor: Descriptor) -> int:
        """Return a number that was never given before."""
        self._next += 1
        self._open[self._next] = descriptor
        return self._next

    def find(self, number: int) -> Descriptor:
        """Return what a number stands for."""
        return self._open[number]


class FakeTime:
    """The module `time`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.sleep = kernel.sleep

    def monotonic(self) -> float:
        """Return virtual s."""
        return self._kernel.now

    perf_counter = monotonic

    def time(self) -> float:
        """Return virtual Unix s."""
        return EPOCH + self._kernel.now


class FakePoll:
    """A `select.poll` object over fake descriptors."""

    def __init__(self, kernel: Kernel, descriptors: Descriptors) -> None:
        self._kernel, self._descriptors = kernel, descriptors
        self._wanted: dict[int, int] = {}

    def register(self, number: int, events: int = POLLED) -> None:
        """Wait for a descriptor as well."""
        self._wanted[number] = events

    modify = register

    def unregister(self, number: int) -> None:
        """Wait for it no longer."""
        del self._wanted[number]

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Wait; what can be written can be written at once."""
        kernel = self._kernel
        kernel.sleep(1e-6)  # a system call takes time, and others come first
        deadline = (
            None if timeout is None or timeout < 0 else kernel.now + math.ceil(timeout) / 1000
        )  # whole ms, as select.poll has it
        while not (ready := self._ready()):
            left = None if deadline is None else deadline - kernel.now
            if left is not None and left <= 0:
                break
            reading = [n for n, events in self._wanted.items() if events & select.POLLIN]
            kernel.wait([self._descriptors.find(number).signal for number in reading], left)
        return ready

    def _ready(self) -> list[tuple[int, int]]:
        found = []
        for number, events in self._wanted.items():
            readable = select.POLLIN if self._descriptors.find(number).readable else 0
            if got := events & (readable | select.POLLOUT):
                found.append((number, got))
        return found


class FakeSelect:
    """The module `select`."""

    POLLIN, POLLOUT, POLLERR, POLLHUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP

    def __init__(self, kernel: Kernel, descriptors: Descriptors) -> None:
        self._kernel, self._descriptors = kernel, descriptors

    def poll(self) -> FakePoll:
        """Return a new poll object."""
        return FakePoll(self._kernel, self._descriptors)


class FakeOs:
    """The module `os`: pipes of ours, files as they are."""

    def __init__(self, kernel: Kernel, descriptors: Descriptors) -> None:
        self._kernel, self._descriptors = kernel, descriptors

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pipe(self) -> tuple[int, int]:
        """Return two ends that are one descriptor: what is written makes it readable."""
        descriptor = Descriptor()
        return self._descriptors.add(descriptor), self._descriptors.add(descriptor)

    def set_blocking(self, number: int, blocking: bool) -> None:
        """Do nothing: no fake blocks."""

    def write(self, number: int, data: bytes) -> int:
        """Write into a pipe, or into a file."""
        if number < 1_000:
            return os.write(number, data)
        self._descriptors.find(number).announce(self._kernel)
        return len(data)

    def read(self, number: int, size: int) -> bytes:
        """Empty a pipe, or read a file."""
        if number < 1_000:
            return os.read(number, size)
        descriptor = self._descriptors.find(number)
        if not descriptor.readable:
            raise BlockingIOError
        descriptor.readable = False
        return b"!"

    def close(self, number: int) -> None:
        """Close a file; pipes need none."""
        if number < 1_000:
            os.close(number)

    def fsync(self, number: int) -> None:
        """Take time: others come first."""
        self._kernel.latency()

    fdatasync = fsync


class FakeEvent:
    """A `threading.Event`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._signal, self._set = kernel, Signal(), False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it and wake who waits."""
        self._set = True
        self._signal.notify(self._kernel)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set or time is over."""
        return self._kernel.until(self.is_set, self._signal, timeout)


class FakeThread:
    """A `threading.Thread`: an actor of the process that starts it."""

    def __init__(self, kernel: Kernel, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._kernel, self._target, self._args = kernel, target, args

    def start(self) -> None:
        """Begin."""
        self._kernel.spawn(self._target, *self._args, owner=current_owner())


class FakeThreading:
    """The module `threading`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)

    def Event(self) -> FakeEvent:  # noqa: N802 - the name of the class
        """Return an event that is not set."""
        return FakeEvent(self._kernel)

    def Thread(  # noqa: N802 - the name of the class
        self, *, target: Callable[..., None], args: tuple[Any, ...] = (), name: str = "", daemon: bool = False
    ) -> FakeThread:
        """Return a thread that has not been started."""
        return FakeThread(self._kernel, target, args)


class FakeExecutor:
    """A `ThreadPoolExecutor` of one thread, which is an actor of the process that made it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._jobs = kernel, deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]]()
        self._owner, self._busy = current_owner(), False

    def submit(self, work: Callable[..., Any], *args: Any, **named: Any) -> "Future[Any]":
        """Do work later."""
        future: Future[Any] = Future()
        self._jobs.append((future, lambda: work(*args, **named), ()))
        if not self._busy:
            self._busy = True
            self._kernel.spawn(self._work, owner=self._owner)
        return future

    def _work(self) -> None:
        while self._jobs:
            future, work, args = self._jobs.popleft()
            if future.set_running_or_notify_cancel():
                self._do(future, work, args)
        self._busy = False

    def _do(self, future: "Future[Any]", work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            result = work(*args)
        except GreenletExit:
            raise
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin nothing new."""
        if cancel_futures:
            while self._jobs:
                self._jobs.popleft()[0].cancel()
