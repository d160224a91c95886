"""What a run ran on: without it, its figures mean nothing."""

import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leasecache._accel import IMPL
from leasecache.errors import ConfigError
from leasecache.lab.install import memcached_program, redis_program
from loadtests.bench.spread import Spread

RIVALS = (
    *("pymemcache", "pylibmc", "meta-memcache", "dogpile.cache", "redis", "hiredis", "cashews"),
    *("emcache", "memcachio", "aiomcache", "msgspec"),
)
CPUINFO = Path("/proc/cpuinfo")
READS = 1000


def description() -> dict[str, Any]:
    """Return versions, processor and clock."""
    return {
        "python": sys.version.split()[0],
        "leasecache": version("leasecache"),
        "implementation": IMPL,
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "clock_ns": clock(),
        "memcached": _served(memcached_program, "-V"),
        "redis": _served(redis_program, "--version"),
        "packages": {name: _installed(name) for name in RIVALS},
    }


def clock() -> dict[str, float]:
    """Return in ns what the clock resolves, and what reading it costs."""
    resolution = time.get_clock_info("perf_counter").resolution
    return {"resolution": resolution * 1e9, "reading": Spread.of([_reading() for _ in range(READS)]).median}


def _reading() -> float:
    return -(time.perf_counter_ns() - time.perf_counter_ns())


def _cpu() -> str:
    model = re.search(r"model name\s*:\s*(.+)", CPUINFO.read_text()) if CPUINFO.exists() else None
    return model[1] if model else platform.processor()


def _served(program: Any, option: str) -> str | None:
    try:
        said = subprocess.run([program(), option], capture_output=True, text=True, check=True).stdout
    except (ConfigError, OSError):
        return None
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found[0] if found else said.strip()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
