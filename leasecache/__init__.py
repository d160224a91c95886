"""leasecache: a cache for Python and Postgres that is never stale by accident."""

from leasecache.acache import AsyncCache
from leasecache.cache import Cache
from leasecache.errors import (
    ConfigError,
    DefinitionError,
    LeasecacheError,
    LeaseTimeout,
    NodeError,
    NodeTimeout,
    ProtocolError,
)
from leasecache.lease import Hit, Lease, Refused, Stale, Stored, Wait
from leasecache.policy import Policy
from leasecache.registry import UnguardedWarning
from leasecache.rules import row
from leasecache.task import Entry

__all__ = [
    "AsyncCache",
    "Cache",
    "ConfigError",
    "DefinitionError",
    "Entry",
    "Hit",
    "Lease",
    "LeaseTimeout",
    "LeasecacheError",
    "NodeError",
    "NodeTimeout",
    "Policy",
    "ProtocolError",
    "Refused",
    "Stale",
    "Stored",
    "UnguardedWarning",
    "Wait",
    "row",
]
