"""`python -m leasecache.invalidation --config FILE`: the daemon, with nothing installed but what it needs itself."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from leasecache.errors import GapError, LeasecacheError
from leasecache.invalidation.logs import FORMATS, LEVELS, configure
from leasecache.invalidation.signals import end_at_once


def main() -> int:
    """Run the daemon; return its exit code."""
    end_at_once()
    parser = _Parser(prog="python -m leasecache.invalidation", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; without one the environment says everything")
    parser.add_argument("--log-format", choices=FORMATS, default=os.environ.get("LEASECACHE_LOG_FORMAT", "logfmt"))
    parser.add_argument("--log-level", choices=LEVELS, default=os.environ.get("LEASECACHE_LOG_LEVEL", "info"))
    arguments = parser.parse_args()
    try:
        from leasecache.invalidation.launch import run_daemon

        configure(arguments.log_format, arguments.log_level)
        run_daemon(arguments.config)
    except ImportError as error:  # the application's own are ConfigErrors by now
        needed = error.name or "psycopg[binary]"
        return _fail(f"the daemon needs {needed}: pip install 'leasecache[daemon]' 'psycopg[binary]'", 2)
    except LeasecacheError as error:
        return _fail(str(error), 1 if isinstance(error, GapError) else 2)  # lost changes are a failure, not wrong use
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see {self.prog} --help", 2))


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"leasecache: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
