"""Virtual time on one thread: actors are greenlets, and dice choose who goes on when several could.

Nothing runs beside anything else: an actor runs until it sleeps or waits, so a run is its seed. An actor belongs to an
owner, such as a process of the daemon, and dies with it wherever it stands.
"""

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

EPOCH = 1_700_000_000.0  # Unix s at virtual time 0
STARTED = 100_000.0  # virtual s: the machine has been up for a while


class Signal:
    """What actors wait for; whoever waits looks for himself what has changed."""

    def __init__(self) -> None:
        self.waiting: list[Actor] = []

    def notify(self, kernel: "Kernel") -> None:
        """Wake everybody who waits now."""
        waiting, self.waiting = self.waiting, []
        for actor in waiting:
            kernel.wake(actor)


class Actor(greenlet):
    """One thread of control."""

    def __init__(self, kernel: "Kernel", work: Callable[..., Any], args: tuple[Any, ...], owner: object) -> None:
        super().__init__(self._live, kernel.hub)
        self.name = getattr(work, "__qualname__", repr(work))
        self.owner = owner
        self.turn = 0  # a wake-up for an earlier turn is void
        self.ending = False
        self._kernel, self._work, self._args = kernel, work, args

    def _live(self) -> None:
        try:
            self._work(*self._args)
        finally:
            self._kernel.actors.pop(self, None)


class Kernel:
    """The clock, the actors and the dice of one run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = STARTED
        self.steps = 0
        self.hub = getcurrent()
        self.actors: dict[Actor, None] = {}
        self._due: list[tuple[float, float, int, int, Actor]] = []
        self._frozen: dict[object, list[tuple[int, Actor]]] = {}  # owner → who would have gone on
        self._count = 0

    def spawn(self, work: Callable[..., Any], *args: Any, owner: object = None) -> Actor:
        """Begin an actor."""
        actor = Actor(self, work, args, owner)
        self.actors[actor] = None
        self.wake(actor)
        return actor

    def wake(self, actor: Actor, at: float | None = None) -> None:
        """Let an actor go on at a time, now unless given; of those who are due at once the dice choose."""
        self._count += 1
        at = self.now if at is None else at
        heapq.heappush(self._due, (at, self.random.random(), self._count, actor.turn, actor))

    def sleep(self, seconds: float) -> None:
        """Let time pass for the actor that calls."""
        self.wait((), seconds)

    def latency(self, most: float = 0.001) -> None:
        """Sleep for a chosen time: mostly short, now and then up to `most` s and seldom far beyond."""
        dice = self.random.random()
        self.sleep(most * (dice**3 if dice < 0.97 else 20 * self.random.random()))

    def wait(self, signals: Iterable[Signal], seconds: float | None) -> None:
        """Wait until one of the signals is notified or time is over; the caller looks which."""
        actor = getcurrent()
        assert isinstance(actor, Actor)
        if actor.ending:
            raise GreenletExit  # whatever it cleans up does not wait
        signals = list(signals)
        for signal in signals:
            signal.waiting.append(actor)
        if seconds is not None:
            self.wake(actor, self.now + max(0.0, seconds))
        self.hub.switch()
        for signal in signals:
            if actor in signal.waiting:
                signal.waiting.remove(actor)

    def until(self, condition: Callable[[], bool], signal: Signal, seconds: float | None = None) -> bool:
        """Wait until `condition` holds, looking whenever `signal` is notified; return whether it does."""
        deadline = None if seconds is None else self.now + seconds
        while not condition():
            left = None if deadline is None else deadline - self.now
            if left is not None and left <= 0:
                return False
            self.wait((signal,), left)
        return True

    def run(self, seconds: float, over: Callable[[], bool] = lambda: False) -> None:
        """Let everything run for some time, or until `over`."""
        deadline = self.now + seconds
        while self._due and self._due[0][0] <= deadline and not over():
            at, _, _, turn, actor = heapq.heappop(self._due)
            if turn != actor.turn or actor.dead:
                continue
            if actor.owner in self._frozen:
                self._frozen[actor.owner].append((turn, actor))
            else:
                self.now = max(self.now, at)
                self.steps += 1
                actor.turn += 1
                actor.switch()
        if not over():
            self.now = max(self.now, deadline)

    def freeze(self, owner: object) -> None:
        """Let the actors of an owner stand still."""
        self._frozen.setdefault(owner, [])

    def thaw(self, owner: object) -> None:
        """Let them go on where they stood; for them no time has passed, for clocks it has."""
        for turn, actor in self._frozen.pop(owner, []):
            if turn == actor.turn:
                self.wake(actor)

    def kill(self, owner: object) -> None:
        """End every actor of an owner where it stands; the caller must not be one of them."""
        for actor in [actor for actor in self.actors if actor.owner is owner]:
            self._end(actor)

    def close(self) -> None:
        """End everybody."""
        for actor in list(self.actors):
            self._end(actor)

    def _end(self, actor: Actor) -> None:
        actor.turn += 1  # what would have woken it is void
        actor.ending = True
        actor.parent = getcurrent()  # who goes on once it has ended
        actor.throw(GreenletExit)
        self.actors.pop(actor, None)


def current_owner() -> object:
    """Return to whom the running actor belongs."""
    return getattr(getcurrent(), "owner", None)
