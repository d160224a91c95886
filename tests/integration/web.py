"""The application that `test_gunicorn` serves. It uses its cache on import: with --preload, before the fork."""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from leasecache import Cache

cache = Cache.from_url(os.environ["WEB_CACHE_URL"])


@cache.cached("item:{item_id}", ttl=600, lease_for=60, wait_for=60)
def get_item(item_id: int) -> int:
    """Return ten times the number; each load leaves a line in a file."""
    with open(os.environ["WEB_LOADS"], "a") as loads:
        loads.write(f"{item_id}\n")
    time.sleep(0.05)
    return item_id * 10


def ports() -> list[int]:
    """Return the local ports of the connections that this process has open."""
    [node] = cache.driver().store.nodes
    connections = list(node._pool._open)  # type: ignore[attr-defined]  # other threads open some meanwhile
    return [connection.sock.getsockname()[1] for connection in connections]


FIRST = get_item(0)
BEFORE_THE_FORK = ports()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer ?item=7 with its value, and with who answered over which connections."""
    item_id = int(parse_qs(environ["QUERY_STRING"])["item"][0])
    answer = {"value": get_item(item_id), "pid": os.getpid(), "ports": ports(), "before": BEFORE_THE_FORK}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
