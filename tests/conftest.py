"""Fixtures of every test; one file per concern."""

import sys

import hypothesis
import pytest

from leasecache._accel import IMPL

pytest_plugins = ["tests.fix_servers", "tests.fix_stores"]

hypothesis.settings.register_profile("leasecache", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("leasecache")


def pytest_report_header(config: pytest.Config) -> str:
    """Say which implementation of the hot path the tests run on."""
    return f"leasecache: {IMPL}, Python {sys.version.split()[0]}"
