"""Real servers on free ports, for the demo, the tests and the load tests.

Every server is a context manager, has a temporary directory of its own, and dies with the process that started it.
"""

from leasecache.lab.memcached import MemcachedServer
from leasecache.lab.postgres import PostgresServer
from leasecache.lab.proxy import TcpProxy
from leasecache.lab.redis import RedisCluster, RedisServer, Watched, redis_cluster, watched_redis
from leasecache.lab.servers import Server, ServerError, free_port, wait_until
from leasecache.lab.topology import DataCentre, two_data_centres
from leasecache.lab.warden import Warden

__all__ = [
    "DataCentre",
    "MemcachedServer",
    "PostgresServer",
    "RedisCluster",
    "RedisServer",
    "Server",
    "ServerError",
    "TcpProxy",
    "Warden",
    "Watched",
    "free_port",
    "redis_cluster",
    "two_data_centres",
    "wait_until",
    "watched_redis",
]
