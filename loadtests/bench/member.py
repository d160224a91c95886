"""One process of a herd: its threads, and what they call."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from loadtests.bench.site import Site

WARM = "warm"  # how the keys begin that are called before the clock runs
USUAL = 0.05  # s that a load of such a key takes
FOREVER = 60.0  # s that the load takes whose process is killed meanwhile


class HerdError(Exception):
    """A herd did not come back, or came back without the value."""


class LoadFailedError(Exception):
    """What a loader raises that is told to."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens to the cold key."""

    load_for: float  # s
    raises: bool = False  # every second load, the first one too
    killed_after: float = 0.0  # s that the lease lasts whose holder is killed while it loads; 0 = nobody is

    @property
    def unavoidable(self) -> float:
        """How long the callers have to wait at least, in s."""
        return self.load_for * (2 if self.raises else 1) + self.killed_after


@dataclass(frozen=True)
class Herd:
    """One herd: how each process opens the side, and the key that nobody has asked for yet."""

    scenario: Scenario
    open: Callable[[Site, Callable[[str], bytes]], Callable[[str], bytes]]
    key: str


@dataclass
class Seen:
    """What became of the callers."""

    loads: int = 0
    waits: list[float] = field(default_factory=list)  # s, of those that got the value
    warm_ups: list[float] = field(default_factory=list)  # s, of the calls before: import, connection, handshake
    failures: list[str] = field(default_factory=list)  # what the others got


class Loader:
    """What a side calls on a miss."""

    def __init__(self, value: bytes, loads: Any, scenario: Scenario) -> None:
        """`loads` counts over all processes."""
        self._value, self._loads, self._scenario = value, loads, scenario

    def __call__(self, name: str) -> bytes:
        """Take the time of a load and give the value, or raise LoadFailedError."""
        if name.startswith(WARM):
            time.sleep(USUAL)
            return self._value
        number = self._count()
        time.sleep(self._scenario.load_for)
        if self._scenario.raises and number % 2:
            raise LoadFailedError(f"load {number}")
        return self._value

    def _count(self) -> int:
        with self._loads.get_lock():
            self._loads.value += 1
            return int(self._loads.value)


class Callers:
    """Threads that call a key of their process, wait for one another, and then call the cold one.

    So the process has its connections, and has seen how long a load takes, as one that has run for a while.
    """

    def __init__(self, get: Callable[[str], bytes], key: str, value: bytes, count: int) -> None:
        self._get, self._key, self._value = get, key, value
        self._warm_key = f"{WARM}:{os.getpid()}:{key}"
        self._warm, self._gate = threading.Barrier(count + 1), threading.Barrier(count + 1)
        self.seen = Seen()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(count)]

    def make_ready(self) -> None:
        """Start them; return when all have the warm value. Raises what the side raises, or HerdError."""
        self._timed(self._warm_key)  # loads; the threads then find it
        for thread in self._threads:
            thread.start()
        try:
            self._warm.wait()
        except threading.BrokenBarrierError:
            raise HerdError(f"a warm key was not served: {self.seen.failures[0]}") from None

    def go(self) -> None:
        """Let them call the cold key; return when all have come back."""
        self._gate.wait()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        try:
            self.seen.warm_ups.append(self._timed(self._warm_key))
            self._warm.wait()
            self._gate.wait()
            self.seen.waits.append(self._timed(self._key))
        except threading.BrokenBarrierError:
            return  # another one's warm key was not served
        except Exception as error:
            self.seen.failures.append(f"{type(error).__name__}: {error}")
            self._warm.abort()

    def _timed(self, key: str) -> float:
        began = time.perf_counter()
        found = self._get(key)
        took = time.perf_counter() - began
        if found != self._value:
            raise HerdError(f"another value of {key}: {found!r:.60}")
        return took


def follow(pipe: Any, address: str, seed: int, together: Any, loads: Any, count: int) -> None:
    """Take part in herds for as long as there is someone to command them."""
    pipe.send(None)
    for herd in _commands(pipe):
        with Site(seed, lambda name: address) as site:
            load = Loader(site.value, loads, herd.scenario)
            try:
                callers = Callers(herd.open(site, load), herd.key, site.value, count)
                callers.make_ready()
            except Exception as error:
                pipe.send(error)
            else:
                pipe.send(None)
            if not pipe.recv():
                continue  # a process of the herd is not ready
            together.wait()
            callers.go()
            pipe.send(callers.seen)


def win(pipe: Any, address: str, seed: int, herd: Herd) -> None:
    """Win the lease on the cold key, say so, and load until somebody kills this process."""
    with Site(seed, lambda name: address) as site:

        def load(name: str) -> bytes:
            pipe.send(name)
            time.sleep(FOREVER)
            return site.value

        herd.open(site, load)(herd.key)


def _commands(pipe: Any) -> Iterator[Herd]:
    try:
        while True:
            yield pipe.recv()
    except EOFError:
        return
