"""Fixtures of every test; one file per concern."""

import signal
import sys

import hypothesis
import pytest

from leasecache._accel import IMPL
from tests.fix_patience import be_patient

pytest_plugins = ["tests.fix_servers", "tests.fix_redis", "tests.fix_stores", "tests.fix_callers", "tests.fix_desk"]

hypothesis.settings.register_profile("leasecache", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("leasecache")
be_patient()


def pytest_configure(config: pytest.Config) -> None:
    """Undo what a shell does to a job in the background: SIGINT ignored, by us and by whatever we start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    """Say which implementation of the hot path the tests run on."""
    return f"leasecache: {IMPL}, Python {sys.version.split()[0]}"
