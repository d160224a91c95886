"""The herd for locust's own command line and web interface; the servers are yours.

locust -f loadtests/locustfile.py --host memcached://127.0.0.1:11211 --dsn postgresql://127.0.0.1/app
"""

import json
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.env import Environment

from loadtests.hotkey import HotKeyUser, Reader, Writer
from loadtests.options import Options, add_arguments
from loadtests.scenario import Scenario

__all__ = ["Reader", "Writer"]


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add our options to locust's."""
    parser.add_argument("--dsn", env_var="LEASECACHE_DSN", required=True, help="Postgres; a table hot_rows is made")
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="write the figures there as JSON")
    add_arguments(parser)


@events.init.add_listener
def look_at_the_clock(**_: Any) -> None:
    """Refresh gevent's idea of now; the run time would otherwise include the imports."""
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Prepare what the users share."""
    parsed: Any = environment.parsed_options
    HotKeyUser.scenario = Scenario(environment, Options.of(parsed), parsed.dsn)


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Close it, and write the report."""
    report = HotKeyUser.scenario.close()
    parsed: Any = environment.parsed_options
    if parsed.report:
        parsed.report.write_text(json.dumps(vars(report)))
