"""Sides of rendering a key from typed arguments."""

import re

from leasecache import Cache
from leasecache.keys import KeyTemplate
from loadtests.bench.hits import MEDIA_ID, TTL, getter
from loadtests.bench.run import Run, calls
from loadtests.bench.site import Site

KEY = b"shop:3:media:%d" % MEDIA_ID
ALLOWED = re.compile(rb"[!-~]{1,250}").fullmatch  # what memcached takes


def floor(site: Site) -> Run:
    """Format bytes."""
    media_id = MEDIA_ID
    return calls(lambda: b"shop:3:media:%d" % media_id)


def ours(site: Site) -> Run:
    """Render with a check of every argument's type and of the key's length: what a hit does."""
    template = KeyTemplate.parse("3:media:{media_id}", {"media_id": "int"})
    render, media_id = template.renderer("shop").from_python, MEDIA_ID
    return calls(lambda: render((media_id,)))


def key_method(site: Site) -> Run:
    """Call `key` of a decorated function, which takes any form of its arguments."""
    cache = Cache.from_url("memory://?namespace=shop", guard="none")
    site.at_end(cache.close)
    cached = cache.cached("3:media:{media_id}", ttl=TTL)(getter(site))
    return calls(lambda: cached.key(MEDIA_ID))


def checked_string(site: Site) -> Run:
    """Format a string, encode it, check that memcached takes it: what an application writes by hand."""
    media_id = MEDIA_ID

    def render() -> bytes:
        key = f"shop:3:media:{media_id}".encode()
        if not ALLOWED(key):
            raise ValueError(key)
        return key

    return calls(render)


def is_key(site: Site, answer: object) -> bool:
    """Tell whether an answer is the key."""
    return answer == KEY
