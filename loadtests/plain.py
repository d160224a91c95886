"""What most applications do: get; on a miss load, then set. Nobody tells the other callers to wait."""

from collections.abc import Callable

from pymemcache.client.base import PooledClient
from pymemcache.exceptions import MemcacheError

from leasecache.config import parse_url

TTL = 3600  # s


class PlainFunction:
    """A function of one id, cached by pymemcache without leases."""

    failures = (MemcacheError, OSError)

    def __init__(self, url: str, load: Callable[[int], int]) -> None:
        self.__name__ = load.__name__
        self._load = load
        self._client = PooledClient(parse_url(url).nodes[0], connect_timeout=1, timeout=1, no_delay=True)

    def __call__(self, row_id: int) -> int:
        """Return the value; every caller that misses loads it."""
        found = self._client.get(self._key(row_id))
        if found is not None:
            return int(found)
        value = self._load(row_id)
        self._client.set(self._key(row_id), str(value), expire=TTL, noreply=False)
        return value

    def invalidate(self, row_id: int) -> None:
        """Delete the value."""
        self._client.delete(self._key(row_id), noreply=False)

    def _key(self, row_id: int) -> str:
        return f"{self.__name__}:{row_id}"
