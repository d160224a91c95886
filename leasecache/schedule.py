"""When to look again at the leases of others: all looks that are due at about the same time go together. No I/O."""

import random
from collections.abc import Iterable, Sequence

from leasecache.errors import NodeError
from leasecache.lease import Answer, Lease
from leasecache.task import Look

FIRST, GROWTH, MOST = 0.001, 1.5, 0.05  # s, factor, s between two looks, from the second on
EARLY = 0.5  # of the pause before it that a look may be sent too early, to go with others


class Schedule:
    """The looks that callers of one process wait for."""

    def __init__(self) -> None:
        self._looks: dict[int, Look] = {}

    def __bool__(self) -> bool:
        return bool(self._looks)

    def add(self, look: Look) -> None:
        """Begin to look."""
        self._looks[id(look)] = look

    def discard(self, look: Look) -> None:
        """Stop looking."""
        self._looks.pop(id(look), None)

    def earliest(self) -> float:
        """Return when (monotonic s) a look is due next; infinity when there is none."""
        return min((look.due for look in self._looks.values()), default=float("inf"))

    def due(self, now: float) -> list[Look]:
        """Return the looks to send now in one batch: none, until one is due; with it those that are nearly due."""
        looks = list(self._looks.values())
        if not any(look.due <= now for look in looks):
            return []
        return [look for look in looks if look.due - EARLY * look.pause <= now]

    def answer(
        self, looks: Iterable[Look], answers: Sequence[Answer | NodeError], now: float
    ) -> tuple[list[Look], list[Lease]]:
        """Note what a batch brought; take off and return the looks that it settles, and leases nobody waits for."""
        jitter = random.uniform(0.8, 1.2)  # of the batch: looks that went together go together again
        settled: list[Look] = []
        unwanted: list[Lease] = []
        for look, answer in zip(looks, answers, strict=True):
            if id(look) not in self._looks:
                unwanted += [answer] if isinstance(answer, Lease) else []
                continue
            look.answer = answer
            look.settled = _settles(look, answer)
            if look.settled:
                self.discard(look)
                settled.append(look)
            else:
                _postpone(look, now, jitter)
        return settled, unwanted


def _postpone(look: Look, now: float, jitter: float) -> None:
    if not look.pause and look.again > now:
        look.due, look.again = look.again, now
        return
    look.pause = min(look.pause * GROWTH or FIRST, MOST)
    look.due = now + look.pause * jitter


def _settles(look: Look, answer: Answer | NodeError) -> bool:
    if isinstance(answer, (Lease, NodeError)):
        return True
    return answer.token is None or answer.token.cas != look.token.cas
