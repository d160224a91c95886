"""The compiled hot path and its pure twin: what is tested of one is tested of the other."""

import importlib
import os
from types import SimpleNamespace
from typing import Any

import pytest

from leasecache import _accel, _pure, _pure_hits, _pure_keys, _pure_mux

PURE = {"_hits": _pure_hits, "_hot": _pure, "_keys": _pure_keys, "_mux": _pure_mux}  # compiled module → its twin


def _compiled() -> dict[str, Any]:
    try:
        return {name: importlib.import_module(f"leasecache.{name}") for name in PURE}
    except ImportError:
        if os.environ.get("LEASECACHE_EXT") == "required":
            raise
        return {}


def _merged(name: str, modules: dict[str, Any]) -> Any:
    """Return all that the modules offer under one roof."""
    return SimpleNamespace(__name__=name, **{key: value for m in modules.values() for key, value in _own(m).items()})


def _own(module: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


COMPILED = _compiled()
TWINS = [_merged("pure", PURE)] + ([_merged("compiled", COMPILED)] if COMPILED else [])
# What works with pools and counters of this process: those are of the side that `leasecache._accel` chose.
USABLE = TWINS if _accel.IMPL == "c" else TWINS[:1]
each_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)


def outcome(call: Any, *args: Any) -> tuple[Any, ...]:
    """Return what a call gives, or the type and message of what it raises, for comparing twins."""
    try:
        return ("returned", call(*args))
    except Exception as error:
        return ("raised", type(error), str(error))
