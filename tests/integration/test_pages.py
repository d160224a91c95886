"""docs/cached_many.md, guard.md, leases.md and running.md run as they stand, on real servers, and show what is so."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from leasecache.lab import MemcachedServer, free_port
from tests.pages import Console, checked, patient, run_section, sections

VALUES = {  # how many values each section shows that are compared with what comes out
    "docs/cached_many.md": {"": 24},
    "docs/guard.md": {"": 14},
    "docs/leases.md": {"By hand": 8},
    "docs/running.md": {
        "gunicorn": 0,
        "gevent": 2,
        "asyncio": 6,
        "Event loops in threads": 2,
        "fork and multiprocessing": 1,
        "Django": 5,
        "Transactions: bypass and in_transaction": 5,
        "Refreshes in the background": 4,
    },
}
ASKED = {"gunicorn": 3, "asyncio": 2}  # of servers, by `curl`
PAGES = [pytest.param(page, expected, id=page) for page, expected in VALUES.items()]


@pytest.mark.parametrize(("page", "expected"), PAGES)
def test_page_runs(page: str, expected: Mapping[str, int], memcached: MemcachedServer, tmp_path: Path) -> None:
    """Each section runs in its order in a process of its own; servers answer, and values are as shown."""
    port = str(free_port())
    addresses = {
        **patient(memcached.address),
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "port 8000": f"port {port}",
    }
    shown, asked = {}, {}
    for heading, inner in sections(page, addresses).items():
        with Console(tmp_path) as console:
            shown[heading] = run_section(inner, tmp_path, console)
        asked[heading] = console.asked
    assert shown == expected
    assert {heading: number for heading, number in asked.items() if number} == {
        heading: number for heading, number in ASKED.items() if heading in expected
    }


def test_values_that_are_shown_are_compared() -> None:
    """Values and records become assertions; prose, assignments and what is no expression do not."""
    program = (
        "f(1)  # 2\nx = f(1)  # 2\nawait f(1)  # [1, 'a']\n    g()   # Stored()\nf(1)  # a hit\ndef f(): ...  # 3\n"
    )
    assert checked(program) == (
        "_shown((f(1)), 2)\nx = f(1)  # 2\n_shown((await f(1)), [1, 'a'])\n    _shown((g()), Stored())\n"
        "f(1)  # a hit\ndef f(): ...  # 3\n",
        3,
    )
