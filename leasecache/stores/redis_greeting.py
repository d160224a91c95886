"""The greeting of a Redis server: what it must be, and what it is taught, before it can hold leases."""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from leasecache.errors import NodeError
from leasecache.stores import redis_wire as wire
from leasecache.stores.redis_scripts import SCRIPTS

LEAST_VERSION = 7
GREETING = ((b"HELLO", b"2"), *((b"SCRIPT", b"LOAD", script.text) for script in SCRIPTS))


def check_greeting(replies: Sequence[Any], *, cluster: bool) -> None:
    """Check the replies to GREETING. Raises NodeError on a replica, Unfit on a server that cannot hold leases."""
    hello, *loaded = replies
    if isinstance(hello, ResponseError):
        raise wire.Unfit(
            f"it refuses HELLO: {wire.complaint(hello)}; "
            f"leases need Redis {LEAST_VERSION}.0 or newer, spoken to directly"
        )
    told = dict(zip(wire.listed(hello)[::2], hello[1::2], strict=False))
    major = wire.needed_bytes(told.get(b"version")).split(b".")[0]
    if not major.isdigit() or int(major) < LEAST_VERSION:
        version = told[b"version"].decode(errors="replace")
        raise wire.Unfit(f"it is version {version}; leases need {LEAST_VERSION}.0 or newer: upgrade it")
    if (told.get(b"mode") == b"cluster") != cluster:
        raise wire.Unfit(
            "it is part of a cluster: use redis+cluster://" if not cluster else "it is no cluster: use redis://"
        )
    if told.get(b"role") != b"master":
        raise NodeError(
            "it is a replica, which may miss an invalidation; connect to the primary, or by redis+sentinel://"
        )
    for reply in loaded:
        if isinstance(reply, ResponseError):
            raise wire.Unfit(
                f"it refuses scripts: {wire.complaint(reply)}; leases need SCRIPT LOAD, EVALSHA and EVAL: allow them"
            )
