"""Background refresh: a lazy pool of daemon threads that survives a fork."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from leasecache.fork import forget_after_fork

WORKERS = 4

log = logging.getLogger("leasecache")

Job = tuple[Callable[..., Any], tuple[Any, ...]] | None  # None ends a worker
Jobs: TypeAlias = "queue.SimpleQueue[Job]"


class Executor(Protocol):
    """What `Cache(background=…)` takes; `concurrent.futures` executors fit."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any: ...


class Background:
    """Four daemon threads, started at first use in each process."""

    def __init__(self) -> None:
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start anew; threads do not survive a fork."""
        self._lock = threading.Lock()
        self._jobs: Jobs | None = None  # made at first use: gevent may patch the queue after this cache was declared
        self._started = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run `fn(*args)` in a worker."""
        jobs, number = self._enlist()
        if number:  # outside the lock: under gevent, start() lets other greenlets run
            self._start(jobs, number)
        jobs.put((fn, args))

    def close(self) -> None:
        """End the workers once they have done what was submitted; a later submit starts others."""
        with self._lock:
            jobs, started = self._jobs, self._started
            self._jobs, self._started = None, 0
        if jobs is not None:
            for _ in range(started):
                jobs.put(None)

    def _enlist(self) -> tuple[Jobs, int]:
        """Return the queue, and the number of a worker that the caller has to start, or 0."""
        with self._lock:
            if self._jobs is None:
                self._jobs = queue.SimpleQueue()
            if self._started == WORKERS:
                return self._jobs, 0
            self._started += 1
            return self._jobs, self._started

    def _start(self, jobs: Jobs, number: int) -> None:
        name = f"leasecache-refresh-{number}"
        try:
            threading.Thread(target=self._work, args=(jobs,), name=name, daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter shuts down
            with self._lock:
                self._started -= 1
            raise

    @staticmethod
    def _work(jobs: Jobs) -> None:
        while True:
            job = jobs.get()
            if job is None:
                return
            fn, args = job
            try:
                fn(*args)
            except BaseException as error:  # a loader that calls sys.exit(): the worker is there for others
                log.warning("background refresh ended by %s", type(error).__name__, exc_info=error)
            del job, fn, args  # a loader's arguments do not outlive its run


class Inline:
    """Runs a refresh in the caller's own thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run `fn(*args)` now."""
        fn(*args)


INLINE = Inline()
