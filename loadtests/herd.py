"""One hundred locust users on one hot key that is invalidated every second: python -m loadtests.herd.

This process runs the servers and judges; locust, which patches the standard library, runs in a process of its own.
Exit codes: 0 one load at most for every invalidation, 1 not so, 2 wrong use.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from leasecache import ConfigError, LeasecacheError
from leasecache.lab import MemcachedServer, PostgresServer
from loadtests.options import Options, add_arguments, number
from loadtests.report import Report

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STOP_WITHIN = 60  # s that locust has to finish its calls and end
PASSED, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


class LocustError(LeasecacheError):
    """Locust ended without a report; what it wrote to standard error says why."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None, locustfile: Path = LOCUSTFILE) -> int:
    """Run the herd and return the exit code."""
    parsed = parse(arguments)
    try:
        report = run(Options.of(parsed), users=parsed.users, duration=parsed.duration, locustfile=locustfile)
    except LeasecacheError as error:
        return fail(str(error), WRONG_USE if isinstance(error, ConfigError) else FAILED)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    if parsed.json:
        print(json.dumps(vars(report), indent=2))  # noqa: T201
    else:
        Console().print(report.table())
    if report.faults():
        return fail("; ".join(report.faults()), FAILED)
    return PASSED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a wrong one ends the process."""
    parser = Parser(prog="herd", description="A herd of locust users on one hot key, with leases and without.")
    parser.add_argument("--users", type=number(1, 1000, int), default=100, help="readers (100)")
    parser.add_argument("--duration", type=number(2, 86400, int), default=30, help="s (30)")
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parsed = parser.parse_args(arguments)
    if parsed.invalidate_every >= parsed.duration:
        parser.error("nothing would be invalidated: --invalidate-every must be less than --duration")
    return parsed


def run(options: Options, *, users: int, duration: int, locustfile: Path = LOCUSTFILE) -> Report:
    """Let the users loose on servers of the lab. Raises LeasecacheError when a server or locust fails."""
    with MemcachedServer() as memcached, PostgresServer() as postgres, tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.json")
        servers = ["--host", memcached.url, "--dsn", postgres.dsn(), "--report", str(report)]
        crowd = ["--users", str(users + 1), "--run-time", f"{duration}s"]  # one of them writes
        swarm(["-f", str(locustfile), *servers, *crowd, *options.arguments()], within=duration + STOP_WITHIN)
        if not report.exists():
            raise LocustError("locust ended without a report")
        return Report(**json.loads(report.read_text()))


def swarm(arguments: list[str], within: float) -> None:
    """Run locust to its end, without its own tables; its warnings and errors go to standard error."""
    fixed = ["--headless", "--spawn-rate=100", f"--stop-timeout={STOP_WITHIN // 2}", "--skip-log-setup"]
    try:
        subprocess.run(
            [sys.executable, "-m", "locust", *fixed, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=LOCUSTFILE.parents[1],  # where the packages are
            timeout=within,
            check=False,  # it reports failed requests so, and they are in the report
        )
    except subprocess.TimeoutExpired:
        raise LocustError(f"locust did not end within {within:g} s") from None


def fail(message: str, code: int) -> int:
    """Say in one line what is wrong, and return the exit code."""
    print(f"herd: {message}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
