"""Fixtures of the integration tests only."""

from tests.fix_browser import browser
from tests.fix_clerk import clerk
from tests.fix_daemon import fragile_world, primary_world, world
from tests.fix_races import counting_memcached, each_memcached, each_node

__all__ = [
    "browser",
    "clerk",
    "counting_memcached",
    "each_memcached",
    "each_node",
    "fragile_world",
    "primary_world",
    "world",
]
