"""The processes of a herd, as the one sees them that commands them. They are started before any clock runs."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from loadtests.bench import member
from loadtests.bench.member import Herd, HerdError, Seen

PROCESSES, CALLERS = 8, 500
WITHIN = 60  # s for one herd


class LostError(HerdError):
    """A process of the herd has died, or does not answer."""


class Crowd:
    """Processes that call together, as often as they are told."""

    def __init__(self, address: str, seed: int) -> None:
        """`address` is that of memcached."""
        self._address, self._seed = address, seed
        self._context = multiprocessing.get_context("spawn")
        self._followers: list[_Follower] = []
        self.started_in = 0.0  # s that the processes took, all together

    def __enter__(self) -> "Crowd":
        began = time.perf_counter()
        self._loads, self._together = self._context.Value("i", 0), self._context.Barrier(PROCESSES)
        for number in range(PROCESSES):
            share = CALLERS // PROCESSES + (number < CALLERS % PROCESSES)
            self._followers.append(self._start(member.follow, self._together, self._loads, share))
        for follower in self._followers:
            follower.answer()
        self.started_in = time.perf_counter() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._followers:
            self._followers.pop().end()

    def run(self, herd: Herd) -> Seen:
        """Let all call at once. Raises HerdError, or ImportError when the side is not installed."""
        try:
            return self._run(herd)
        except LostError:  # nobody knows what the others are doing now
            self.__exit__(None, None, None)
            self.__enter__()
            raise

    def _run(self, herd: Herd) -> Seen:
        self._make_ready(herd)
        self._loads.value = 0
        if herd.scenario.killed_after:
            self._kill_a_winner(herd)
        self._tell(True)
        seen = Seen()
        for follower in self._followers:
            part = follower.answer()
            seen.waits += part.waits
            seen.warm_ups += part.warm_ups
            seen.failures += part.failures
        seen.loads = self._loads.value
        if not seen.waits:
            raise HerdError(f"nobody got the value: {seen.failures[0]}")
        return seen

    def _make_ready(self, herd: Herd) -> None:
        """Have every thread call a warm key, so that imports and connections are not measured."""
        self._tell(herd)
        faults = [fault for fault in [follower.answer() for follower in self._followers] if fault is not None]
        if faults:
            self._tell(False)
            raise faults[0]

    def _kill_a_winner(self, herd: Herd) -> None:
        winner = self._start(member.win, herd)
        try:
            winner.answer()  # that it loads
        finally:
            winner.end()

    def _tell(self, command: object) -> None:
        for follower in self._followers:
            follower.pipe.send(command)

    def _start(self, target: Callable[..., None], *arguments: Any) -> "_Follower":
        ours, theirs = self._context.Pipe()
        fixed = (theirs, self._address, self._seed)
        process = self._context.Process(target=target, args=(*fixed, *arguments), daemon=True)
        process.start()
        theirs.close()
        return _Follower(ours, process)


@dataclass(frozen=True)
class _Follower:
    """One process and the pipe to it."""

    pipe: Any
    process: Any

    def answer(self) -> Any:
        """Return what it says. Raises LostError when it says nothing."""
        try:
            if self.pipe.poll(WITHIN):
                return self.pipe.recv()
        except (EOFError, OSError):
            raise LostError("a process of the herd has died") from None
        raise LostError(f"a process of the herd did not answer within {WITHIN} s")

    def end(self) -> None:
        """Kill the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
