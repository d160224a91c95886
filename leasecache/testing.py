"""The pytest plugin: a fixture for tests of applications that cache. Installed by itself with leasecache."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest


class Overridable(Protocol):
    """A `Cache` or an `AsyncCache`."""

    def override(self, url: str) -> contextlib.AbstractContextManager[None]:
        """Use another store for a while."""


@pytest.fixture
def leasecache_memory() -> Iterator[Callable[..., None]]:
    """Let caches use an empty store in memory each, until the test ends: `leasecache_memory(cache, …)`.

    They need not be configured, and nothing that they are configured for is touched.
    """
    with contextlib.ExitStack() as overrides:

        def use_memory(*caches: Overridable) -> None:
            for cache in caches:
                overrides.enter_context(cache.override("memory://"))

        yield use_memory
