"""Two versions of an application on one cache, as during a deployment: each reads only what it can."""

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from leasecache.lab import MemcachedServer

PROGRAM = """
import dataclasses, json, sys
import msgspec, pydantic
from leasecache import Cache

cache = Cache.from_url(sys.argv[1])
loads = 0

{declared}

@cache.cached("item:{{item_id}}", ttl=600, {policy})
def get_item(item_id: int) -> {annotation}:
    global loads
    loads += 1
    return {value}

for line in sys.stdin:
    loads = 0
    values = {{repr(get_item(1)) for _ in range(int(line))}}
    print(json.dumps([sorted(values), loads]), flush=True)
"""
Version = dict[str, str]


def version(declared: str, value: str, annotation: str = "Media", policy: str = "") -> Version:
    """Return one version of the application."""
    return {"declared": declared, "value": value, "annotation": annotation, "policy": policy}


DATACLASS = "@dataclasses.dataclass\nclass Media:\n    id: int"
STRUCT = "class Media(msgspec.Struct):\n    id: int"
MODEL = "class Media(pydantic.BaseModel):\n    id: int"
PLAIN = """
class Media:
    def __init__(self, id): self.id = id
    def __repr__(self): return f'{type(self).__name__}({self.id})'"""
DEPLOYS: dict[str, tuple[Version, Version]] = {
    "a field more": (version(DATACLASS, "Media(1)"), version(f"{DATACLASS}\n    title: str = ''", "Media(1, 'a')")),
    "another type": (version(DATACLASS, "Media(1)"), version(DATACLASS.replace("int", "str"), "Media('1')")),
    "another class": (version(DATACLASS, "Media(1)"), version("", "1", "int")),
    "a version": (version("", "1", "int"), version("", "2", "int", "version=1")),
    "a struct": (version(STRUCT, "Media(1)"), version(f"{STRUCT}\n    title: str = ''", "Media(1, 'a')")),
    "a model": (version(MODEL, "Media(id=1)"), version(f"{MODEL}\n    title: str", "Media(id=1, title='a')")),
    "another codec": (version("", "[1]", "list", "codec='json'"), version("", "[1]", "list", "codec='pickle'")),
    "a class that pickle cannot find": (
        version(PLAIN, "Media(1)", "object", "codec='pickle'"),
        version(PLAIN.replace("Media", "Photo"), "Photo(1)", "object", "codec='pickle'"),
    ),
    "a value grown None": (version("", "1", "int"), version("", "None", "int | None")),
}


class Deployed:
    """A process of one version."""

    def __init__(self, source: Version, url: str) -> None:
        command = [sys.executable, "-W", "error", "-c", PROGRAM.format(**source), url]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def get(self, times: int = 1) -> tuple[list[str], int]:
        """Let it call its function; return the values that it saw, and how often it loaded."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        values, loads = json.loads(self.process.stdout.readline())
        return values, loads

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=60)


Deploy = Callable[[tuple[Version, Version]], tuple[Deployed, Deployed]]


@pytest.fixture
def deploy(shared_memcached: MemcachedServer) -> Iterator[Deploy]:
    """Start the old and the new version of an application on one cache."""
    with ExitStack() as running:

        def start(versions: tuple[Version, Version]) -> tuple[Deployed, Deployed]:
            url = f"{shared_memcached.url}?namespace={uuid.uuid4().hex[:12]}&timeout=20&connect_timeout=20"
            old, new = (Deployed(source, url) for source in versions)
            running.callback(old.close)
            running.callback(new.close)
            return old, new

        yield start


@pytest.mark.parametrize("change", DEPLOYS)
def test_versions_alternate(deploy: Deploy, change: str) -> None:
    """Each switch from one version to the other costs one load, then it hits; nobody sees the other's value."""
    versions = DEPLOYS[change]
    running = deploy(versions)
    for turn in range(6):
        values, loads = running[turn % 2].get(5)
        assert len(values) == 1
        assert loads == 1, f"turn {turn}"
    [old], [new] = running[0].get()[0], running[1].get()[0]
    assert (old == new) is (change == "another codec")
    assert running[1].get(5)[1] == 0


@pytest.mark.parametrize("change", ["a field more", "a class that pickle cannot find"])
def test_versions_at_once(deploy: Deploy, change: str) -> None:
    """Both versions called at the same time go on returning their own values, without an error."""
    running = deploy(DEPLOYS[change])
    with ThreadPoolExecutor(2) as pool:
        (old, _), (new, _) = pool.map(lambda deployed: deployed.get(300), running)
    assert len(old) == len(new) == 1
    assert old != new
    for deployed in running:
        deployed.get()
        assert deployed.get(5)[1] == 0
