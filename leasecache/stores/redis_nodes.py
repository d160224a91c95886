"""The Redis nodes that a cache URL names: single servers, the primary that Sentinels know, or a cluster."""

from collections.abc import Sequence
from typing import Any

from leasecache.stores.redis import RedisNode, Sentinels
from leasecache.stores.redis_cluster import RedisCluster
from leasecache.stores.redis_link import Access


def nodes(
    names: Sequence[str], *, cluster: bool, service: str | None, pool: int = 64, **access: Any
) -> Sequence[RedisNode | RedisCluster]:
    """Return nodes that open nothing yet; `names` are those of servers, of Sentinels or of some of a cluster's nodes.

    `access` are the fields of Access.
    """
    how = Access(**access)
    if cluster:
        return [RedisCluster(names, how, pool=pool)]
    if service is not None:
        sentinels = Sentinels(service, names, how)
        return [RedisNode(sentinels.name, how, pool=pool, locate=sentinels.locate)]
    return [RedisNode(name, how, pool=pool) for name in names]
