"""An application module whose decorated functions are sent to other processes by name."""

from collections.abc import Mapping, Sequence

from leasecache import Cache

cache = Cache.from_url("memory://")


@cache.cached("double:{x}", ttl=60)
def double(x: int) -> int:
    """Return 2x."""
    return 2 * x


@cache.cached_many("half:{x}", ttl=60)
def halves(xs: Sequence[int]) -> Mapping[int, int]:
    """Return the halves of even numbers."""
    return {x: x // 2 for x in xs if x % 2 == 0}


class Shop:
    """Has cached methods of each kind."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @cache.cached("price:{x}", ttl=60, version=1)
    def price(self, x: int) -> int:
        """Return x times the factor."""
        return self.factor * x

    @cache.cached("class:{x}", ttl=60)
    @classmethod
    def of_class(cls, x: int) -> int:
        """Return x + 1."""
        return x + 1

    @cache.cached("static:{x}", ttl=60)
    @staticmethod
    def static(x: int) -> int:
        """Return x - 1."""
        return x - 1
