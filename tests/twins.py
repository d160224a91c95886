"""The compiled hot path and its pure twin: what is tested of one is tested of the other."""

import importlib
import os
from typing import Any

import pytest

from leasecache import _pure


def _twins() -> list[Any]:
    try:
        return [_pure, importlib.import_module("leasecache._hot")]
    except ImportError:
        if os.environ.get("LEASECACHE_EXT") == "required":
            raise
        return [_pure]


TWINS = _twins()
each_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__.rpartition(".")[2])


def outcome(call: Any, *args: Any) -> tuple[Any, ...]:
    """Return what a call gives, or the type and message of what it raises, for comparing twins."""
    try:
        return ("returned", call(*args))
    except Exception as error:
        return ("raised", type(error), str(error))
