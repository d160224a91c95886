"""What the gate holds back: transactions in the order of the log, and the positions behind them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from leasecache.invalidation.gate import View
from leasecache.invalidation.stream import Transaction


@dataclass(slots=True)
class _Place:
    """A transaction that waits for the gate, or a position that waits for those before it."""

    position: int
    transaction: Transaction | None
    since: float  # monotonic s
    hidden: tuple[int, ...] = ()  # those of its xids that the view has not shown


class Held:
    """A queue of places; its length counts them."""

    def __init__(self) -> None:
        self.transactions = 0
        self.keys = 0  # of these transactions
        self._places: deque[_Place] = deque()

    def __len__(self) -> int:
        """Return how many transactions and positions wait."""
        return len(self._places)

    @property
    def since(self) -> float | None:
        """Since when (monotonic s) the first of them has waited."""
        return self._places[0].since if self._places else None

    def add(self, transaction: Transaction, now: float) -> None:
        """Hold a transaction."""
        self._places.append(_Place(transaction.end_lsn, transaction, now, transaction.xids))
        self.transactions += 1
        self.keys += len(transaction.touched)

    def reach(self, position: int, now: float) -> None:
        """Hold a position: nothing before it is still to come."""
        if self._places and self._places[-1].transaction is None:
            self._places[-1].position = position
        else:
            self._places.append(_Place(position, None, now))

    def release(self, view: View, places: int) -> Iterator[tuple[Transaction, float]]:
        """Take out what the view shows among the first `places`; yield it with the time (monotonic s) it came.

        A transaction may become visible before an earlier one; its keys go, its position waits for the prefix. Of
        several that came in at once nobody knows whose keys are whose: whenever one of them becomes visible, the keys
        of all go, and again with the last one.
        """
        for place in islice(self._places, places):
            transaction = place.transaction
            if transaction is None:
                continue
            hidden = view.hides(place.hidden, transaction.end_lsn)
            if not hidden:
                place.transaction = None
                self.transactions -= 1
                self.keys -= len(transaction.touched)
            if len(hidden) < len(place.hidden):
                place.hidden = hidden
                yield transaction, place.since

    def settle(self) -> int | None:
        """Forget the longest prefix without a transaction; return its last position, None when it is empty."""
        position = None
        while self._places and self._places[0].transaction is None:
            position = self._places.popleft().position
        return position
