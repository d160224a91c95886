"""One `AsyncCache` of a module in one event loop after the other, without a word to it when a loop ends."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, gc, os, sys
import uvloop
from leasecache import AsyncCache

gc.disable()  # so that nothing else closes what was forgotten
cache = AsyncCache.from_url(sys.argv[1])
run = {"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]]

@cache.cached("item:{n}", ttl=60)
async def get_item(n: int) -> int:
    return n

async def use(first):
    await asyncio.gather(*[get_item(n) for n in range(first, first + 5)])

def descriptors():
    return len(os.listdir("/proc/self/fd"))

run(asyncio.sleep(0))  # what the loop itself keeps
before = descriptors()
for i in range(20):
    run(use(5 * i))
print(descriptors() - before)
gc.collect()
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("server", ["shared_memcached", "shared_redis", "shared_redis_cluster"])
def test_loop_takes_its_connections_along(request: pytest.FixtureRequest, server: str, loop: str) -> None:
    """After 20 loops no descriptor is left, and nobody warns of an unclosed one; guard: `Shutdown.watch`."""
    url = request.getfixturevalue(server).url
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM, f"{url}?timeout=20", loop],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
