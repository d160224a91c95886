"""What the flows and the daemon ask of a store. Small on purpose: a null store is a few lines."""

from collections.abc import Sequence
from typing import Protocol


class Node(Protocol):
    """One cache server, as the invalidation daemon sees it."""

    name: str  # "host:port" or the path of a Unix socket; shown to operators

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void outstanding leases on `keys`, drop the values or leave them stale for at most `stale_for` s.

        Returns once the node has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        ...
