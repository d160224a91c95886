"""Fixtures of the integration tests only."""

from tests.fix_daemon import fragile_world, primary_world, world

__all__ = ["fragile_world", "primary_world", "world"]
