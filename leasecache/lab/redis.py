"""Redis: single servers, a primary and its replica under a Sentinel, a cluster."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from leasecache.lab.install import redis_program
from leasecache.lab.servers import HOST, Server, free_port, wait_until

SERVICE = "app"  # what the Sentinel calls the primary
PROMPT = ("--repl-diskless-sync-delay", "0")  # s that a replica waits for others before it is served
SLOTS = 16384
END = b"that-is-all"  # what a server sends back behind its replies
WITHIN = 30.0  # s, for what takes milliseconds on an idle machine


class RedisServer(Server):
    """Run redis-server without persistence; `arguments` are added to its command line ("--maxmemory", "8mb").

    Raises ConfigError when redis-server is not installed, or older than 7.0.
    """

    def __init__(self, *arguments: str, name: str = "redis", password: str | None = None) -> None:
        super().__init__(name)
        self._program = redis_program()
        self._arguments = [*arguments, *(("--requirepass", password) if password else ())]
        self._password = password

    @property
    def url(self) -> str:
        """Return the URL for `Cache.from_url`."""
        return f"redis://{f':{self._password}@' if self._password else ''}{self.address}/0"

    def command(self) -> list[str]:
        fixed = ["--bind", HOST, "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(self.data)]
        return [str(self._program), *fixed, *self._arguments]

    def ready(self) -> bool:
        return f"\r\nprocess_id:{self.pid}\r\n" in self.ask("INFO server")

    def ask(self, *commands: str) -> str:
        """Send administrative commands; return the replies as they come, or "" when nobody answers.

        A command is a line without its end, such as "CONFIG SET maxmemory 1mb".
        """
        greeting = [f"AUTH {self._password}"] if self._password else []
        request = "".join(f"{line}\r\n" for line in (*greeting, *commands, f"ECHO {END.decode()}"))
        replies = b""
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as connection:
                connection.sendall(request.encode())
                while END not in replies[-80:] or not replies.endswith(b"\r\n"):  # a Sentinel complains of "ECHO END"
                    received = connection.recv(65536)
                    if not received:
                        break
                    replies += received
        except OSError:
            return ""
        return replies.decode(errors="replace")

    @property
    def role(self) -> str:
        """Return "master" or "slave", or "" when it does not run."""
        return "".join(line[5:] for line in self.ask("INFO replication").splitlines() if line.startswith("role:"))


class SentinelServer(RedisServer):
    """Run a Redis Sentinel that watches `primary` as SERVICE, and alone decides that it is down."""

    def __init__(self, primary: RedisServer, *lines: str, name: str = "sentinel") -> None:
        """`lines` are added to its configuration file."""
        super().__init__(name=name)
        self._primary = primary
        self._lines = lines

    def prepare(self) -> None:
        lines = (
            f"sentinel monitor {SERVICE} {HOST} {self._primary.port} 1",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 2000",
            *self._lines,
        )
        path = self.data / "sentinel.conf"  # Sentinel writes to it
        path.write_text("\n".join(lines) + "\n")
        os.chown(path, self.account.uid, self.account.gid)

    def command(self) -> list[str]:
        fixed = ["--sentinel", "--bind", HOST, "--port", str(self.port), "--dir", str(self.data)]
        return [str(self._program), str(self.data / "sentinel.conf"), *fixed]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A primary, its replica and the Sentinel that makes the one the other."""

    primary: RedisServer
    replica: RedisServer
    sentinel: SentinelServer

    @property
    def url(self) -> str:
        """Return the URL for `Cache.from_url`."""
        return f"redis+sentinel://{self.sentinel.address}/{SERVICE}"


@contextmanager
def watched_redis() -> Iterator[Watched]:
    """Run a primary with a replica, and a Sentinel that knows both."""
    with ExitStack() as servers:
        primary = servers.enter_context(RedisServer(*PROMPT, name="redis-1"))
        replica = servers.enter_context(RedisServer(*PROMPT, "--replicaof", f"{HOST} {primary.port}", name="redis-2"))
        wait_until(lambda: "master_link_status:up" in replica.ask("INFO replication"), WITHIN, "replication")
        sentinel = servers.enter_context(SentinelServer(primary))
        found = "master-link-status\r\n$2\r\nok\r\n"
        wait_until(
            lambda: found in sentinel.ask(f"SENTINEL REPLICAS {SERVICE}"), WITHIN, "Sentinel to find the replica"
        )
        yield Watched(primary=primary, replica=replica, sentinel=sentinel)


class ClusterServer(RedisServer):
    """Run redis-server as a node of a cluster, alone until others are met."""

    def __init__(self, node_timeout: float, name: str) -> None:
        """`node_timeout` is the s after which others take a silent node for dead."""
        super().__init__(name=name)
        self._node_timeout = node_timeout

    def prepare(self) -> None:
        self._bus = free_port()

    def command(self) -> list[str]:
        timeout = str(round(self._node_timeout * 1000))
        arguments = ["--cluster-enabled", "yes", "--cluster-port", str(self._bus), "--cluster-node-timeout", timeout]
        return [*super().command(), *arguments, *PROMPT]

    def meet(self, other: "ClusterServer") -> None:
        """Join the cluster that another node is in."""
        self.ask(f"CLUSTER MEET {HOST} {other.port} {other._bus}")

    @property
    def id(self) -> str:
        """Return the name that the cluster has for it."""
        return self.ask("CLUSTER MYID").splitlines()[1]


@dataclass(frozen=True, kw_only=True)
class RedisCluster:
    """Primaries that share the slots evenly, and their replicas in the same order."""

    primaries: Sequence[ClusterServer]
    replicas: Sequence[ClusterServer]

    @property
    def url(self) -> str:
        """Return the URL for `Cache.from_url`, which names one node."""
        return f"redis+cluster://{self.primaries[0].address}"


@contextmanager
def redis_cluster(primaries: int = 2, *, replicas: bool = False, node_timeout: float = 30.0) -> Iterator[RedisCluster]:
    """Run a cluster of so many primaries; with `replicas` each has one. A node silent for `node_timeout` s is dead.

    Three primaries elect a replica when one of them dies; with fewer "CLUSTER FAILOVER" makes a replica the primary.
    """
    with ExitStack() as servers:
        count = 2 * primaries if replicas else primaries
        nodes = [servers.enter_context(ClusterServer(node_timeout, f"redis-{i}")) for i in range(count)]
        owners, followers = nodes[:primaries], nodes[primaries:]
        for i, owner in enumerate(owners):
            first, end = SLOTS * i // primaries, SLOTS * (i + 1) // primaries
            owner.ask(f"CLUSTER SET-CONFIG-EPOCH {i + 1}", f"CLUSTER ADDSLOTSRANGE {first} {end - 1}")
        for node in nodes[1:]:
            node.meet(nodes[0])
        _each(nodes, lambda node: f"cluster_known_nodes:{count}" in node.ask("CLUSTER INFO"), "the nodes to meet")
        for owner, follower in zip(owners, followers, strict=replicas):
            wait_until(partial(_follows, follower, owner), WITHIN, "replication")
        _each(nodes, lambda node: _complete(node, len(followers)), "the cluster to be complete")
        yield RedisCluster(primaries=owners, replicas=followers)


def _each(nodes: Sequence[ClusterServer], condition: Callable[[ClusterServer], bool], what: str) -> None:
    for node in nodes:
        wait_until(partial(condition, node), WITHIN, what)


def _follows(follower: ClusterServer, owner: ClusterServer) -> bool:
    if follower.role == "master":
        follower.ask(f"CLUSTER REPLICATE {owner.id}")
    return "master_link_status:up" in follower.ask("INFO replication")


def _complete(node: ClusterServer, followers: int) -> bool:
    """Tell whether a node takes commands and knows who follows whom."""
    return "cluster_state:ok" in node.ask("CLUSTER INFO") and node.ask("CLUSTER NODES").count("slave ") == followers
