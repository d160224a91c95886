"""The pytest plugin, as an application's own test suite has it: found by its entry point, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from leasecache import Policy

pytest_plugins = ["pytester"]

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

APP = """
from leasecache import AsyncCache, Cache

cache = Cache()
acache = AsyncCache()
other = Cache.from_url("memcached://127.0.0.1:1", guard="none")
loads = []

@cache.cached("double:{x}", ttl=60)
def double(x: int) -> int:
    loads.append(x)
    return 2 * x

@acache.cached("triple:{x}", ttl=60)
async def triple(x: int) -> int:
    loads.append(x)
    return 3 * x

@other.cached("half:{x}", ttl=60)
def half(x: int) -> int:
    loads.append(x)
    return x // 2
"""
TESTS = """
import asyncio
import app
import pytest
from leasecache import ConfigError

@pytest.mark.parametrize("run", [1, 2])
def test_each_test_begins_empty(leasecache_memory, run):
    leasecache_memory(app.cache, app.other)
    app.loads.clear()
    assert (app.double(2), app.double(2), app.half(2), app.half(2)) == (4, 4, 1, 1)
    assert app.loads == [2, 2]

@pytest.mark.parametrize("run", [1, 2])
def test_asynchronous_ones_too(leasecache_memory, run):
    leasecache_memory(app.acache)
    app.loads.clear()

    async def main():
        return [await app.triple(2), await app.triple(2)]

    assert asyncio.run(main()) == [6, 6]
    assert app.loads == [2]

def test_without_the_fixture():
    with pytest.raises(ConfigError):
        app.double(2)

@pytest.fixture(autouse=True)
def nothing_is_left(request):
    yield
    assert app.cache.active is None

def test_several_caches_and_the_same_again(leasecache_memory):
    leasecache_memory(app.cache)
    app.double(3)
    leasecache_memory(app.cache)
    assert app.double.peek(3) is None
"""
PROJECT = """
[pytest]
filterwarnings = error
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """An application's project, in which leasecache is installed as far as its entry points go."""
    pytester.makepyfile(app=APP, test_app=TESTS)
    pytester.makefile(".ini", pytest=PROJECT)
    installed = pytester.mkdir("leasecache_testing-0.dist-info")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: leasecache-testing\nVersion: 0\n")
    (installed / "entry_points.txt").write_text("[pytest11]\nleasecache = leasecache.testing\n")
    return pytester


def test_the_fixture(project: pytest.Pytester) -> None:
    """Caches that ask for it are in memory and empty, one test after the other; afterwards they are as before."""
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-q")
    result.assert_outcomes(passed=6)
    result = project.runpytest_subprocess("--fixtures", "-q")
    result.stdout.fnmatch_lines(["*leasecache_memory*", "*Let caches use an empty store in memory each*"])


def test_the_page_about_testing(project: pytest.Pytester) -> None:
    """What docs/testing.md shows is an application and tests that pass."""
    app, tests, lab = BLOCK.findall((DOCS / "testing.md").read_text(encoding="utf-8"))
    project.makepyfile(app=app, test_app=tests, test_lab=f"import app\n\ndef test_lab():\n{indent(lab, ' ' * 4)}")
    project.runpytest_subprocess("-p", "no:cacheprovider", "-q").assert_outcomes(passed=6)


def test_the_page_about_policies() -> None:
    """What docs/policy.md shows runs, and its table has every field."""
    page = (DOCS / "policy.md").read_text(encoding="utf-8")
    for block in BLOCK.findall(page):
        exec(block, {"__name__": "policies"})
    fields = re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)
    assert sorted(fields) == sorted(Policy.__dataclass_fields__)


def test_the_plugin_is_light() -> None:
    """Whoever has leasecache installed loads it with every pytest: it brings in no driver, no framework, no server."""
    program = "import sys, leasecache.testing; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = ("psycopg", "redis", "typer", "rich", "prometheus_client", "pydantic", "django", "sqlalchemy", "locust")
    ours = ("leasecache.lab", "leasecache.invalidation", "leasecache.contrib", "leasecache.cli")
    assert [name for name in loaded if name.startswith(heavy + ours)] == []
