"""Time limits of stores under test: a busy machine is no server that does not answer.

A process that is not let run for a second, amid an exchange, has found a server silent that had answered. Tests that
are about time limits name theirs.
"""

from leasecache.stores.amemcached import AsyncMemcachedNode
from leasecache.stores.memcached_link import MemcachedLink
from leasecache.stores.redis_link import Access

PATIENT = 30.0  # s
LIMITS = ("timeout", "connect_timeout")
PROMISED: list[float] = []  # s, as applications have them


def be_patient() -> None:
    """Give every store of this process that is not told otherwise `PATIENT` s for an exchange, and to connect."""
    for opened in (MemcachedLink, AsyncMemcachedNode, Access):
        defaults = vars(opened)["__init__"].__kwdefaults__
        PROMISED.extend(defaults[limit] for limit in LIMITS)
        defaults.update(dict.fromkeys(LIMITS, PATIENT))
