"""leasecache: a cache for Python and Postgres that is never stale by accident."""

from leasecache.cache import Cache, UnguardedWarning
from leasecache.errors import (
    ConfigError,
    DefinitionError,
    LeasecacheError,
    LeaseTimeout,
    NodeError,
    NodeTimeout,
    ProtocolError,
)
from leasecache.flow import Entry
from leasecache.lease import Hit, Lease, Refused, Stale, Stored, Wait
from leasecache.policy import Policy
from leasecache.rules import row

__all__ = [
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
