"""Background refresh: a lazy pool of daemon threads that survives a fork and keeps context variables."""

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from leasecache.fork import forget_after_fork

WORKERS = 4


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
        self._jobs: queue.SimpleQueue[tuple[contextvars.Context, Callable[..., Any], tuple[Any, ...]]]
        self._jobs = queue.SimpleQueue()
        self._started = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run `fn(*args)` in a worker, under a copy of the caller's context variables."""
        self._jobs.put((contextvars.copy_context(), fn, args))
        with self._lock:
            if self._started < WORKERS:
                self._started += 1
                name = f"leasecache-refresh-{self._started}"
                threading.Thread(target=self._work, args=(self._jobs,), name=name, daemon=True).start()

    @staticmethod
    def _work(jobs: "queue.SimpleQueue[tuple[contextvars.Context, Callable[..., Any], tuple[Any, ...]]]") -> None:
        while True:
            context, fn, args = jobs.get()
            context.run(fn, *args)
            del context, fn, args  # a loader's arguments do not outlive its run


class Inline:
    """Runs a refresh in the caller's own thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run `fn(*args)` now."""
        fn(*args)


INLINE = Inline()
