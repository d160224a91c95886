"""An application module whose annotations are strings, one of them of a class that comes later."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from leasecache import Cache

cache = Cache()


@cache.cached("early:{id}:{ref}", ttl=60)
def early(id: int, ref: uuid.UUID | None = None) -> Later:  # noqa: A002
    """Load a value of a class that is not defined yet."""
    return Later(id)


@dataclass
class Later:
    """Defined after the function that returns it."""

    id: int


@cache.cached("add:{a}", ttl=60)
def add_one(a: int) -> int:
    """Return a + 1."""
    return a + 1


class Shelf:
    """A class whose methods are cached."""

    @cache.cached("shelf:{id}", ttl=60)
    def get(self, id: int) -> Later:  # noqa: A002
        """Load with a class that is known when this runs."""
        return Later(id)
