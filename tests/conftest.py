"""Fixtures of every test; one file per concern."""

import importlib
import sys

import pytest

pytest_plugins = ["tests.fix_servers"]


def pytest_report_header(config: pytest.Config) -> str:
    """Say which implementation of the hot path the tests run on."""
    return f"leasecache: {_implementation()}, Python {sys.version.split()[0]}"


def _implementation() -> str:
    try:
        return str(importlib.import_module("leasecache._accel").IMPL)
    except ModuleNotFoundError:
        return "no leasecache._accel"
