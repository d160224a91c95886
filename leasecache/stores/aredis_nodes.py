"""The Redis nodes that a cache URL names, for asyncio: the twin of `redis_nodes`."""

from collections.abc import Sequence
from typing import Any

from leasecache.stores.aredis import AsyncRedisNode, AsyncSentinels
from leasecache.stores.aredis_cluster import AsyncRedisCluster
from leasecache.stores.redis_link import Access


def nodes(
    names: Sequence[str], *, cluster: bool, service: str | None, pool: int = 64, **access: Any
) -> Sequence[AsyncRedisNode | AsyncRedisCluster]:
    """Return nodes that open nothing yet; `names` are those of servers, of Sentinels or of some of a cluster's nodes.

    `access` are the fields of Access.
    """
    how = Access(**access)
    if cluster:
        return [AsyncRedisCluster(names, how, pool=pool)]
    if service is not None:
        sentinels = AsyncSentinels(service, names, how)
        return [AsyncRedisNode(sentinels.name, how, pool=pool, locate=sentinels.locate)]
    return [AsyncRedisNode(name, how, pool=pool) for name in names]
