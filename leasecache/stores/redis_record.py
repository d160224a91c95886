"""The guard record in Redis, and the run of the server that it must be of.

A server brings back what it had, from its file when it starts or from another server when it becomes a replica. So a
record names the run that it was written to. A run begins when the process starts, and anew when the server is promoted.
A connection ends with the process, and a Sentinel that promotes or demotes ends connections: each asks once.
But the number of a replication history may change under a live one: a run that is not the one last heard of is asked
about again, once.
"""

from typing import Any

from redis.exceptions import ResponseError

from leasecache.errors import GuardError, NodeError, ProtocolError
from leasecache.stores import redis_wire as wire
from leasecache.stores.redis_wire import Command

UNGUARDABLE = "a cluster has no guard: a slot moves between servers with its keys but without the record for them"
LONGEST = 200  # characters of a run; Redis has 80
QUESTION = (b"INFO", b"server", b"replication")


class Running:
    """The run of the server behind one connection, as last heard of."""

    __slots__ = ("_about", "now")

    def __init__(self) -> None:
        self.now = ""  # "" = never asked
        self._about = ""  # the run about which was asked

    def unclear(self, run: str) -> bool:
        """Tell whether to ask the server before anything else, which is to be in this run; "" = whichever."""
        return not self.now or (run not in ("", self.now) and run != self._about)

    def take(self, reply: Any, run: str) -> None:
        """Take note of the reply to QUESTION. Raises NodeError."""
        if isinstance(reply, ResponseError):
            raise refusal(reply)
        self.now = read_run(reply)
        self._about = run

    def doubt(self, run: str) -> GuardError | None:
        """Return why nothing is to be sent to the server, None = it is in this run."""
        if run in ("", self.now):
            return None
        return GuardError("its guard record is of another run of the server, from before a restart or failover")


def refusal(error: ResponseError) -> GuardError:
    """Return the error of a server that does not answer QUESTION."""
    return GuardError(f"it refuses INFO: {wire.complaint(error)}; a guard needs it: allow it (+info)")


def of(value: bytes | None) -> bytes | None:
    """Return the guard record in what GET has brought, None when there is none."""
    if value is None or not value.startswith(wire.FRESH) or len(value) < wire.HEADER.size:
        return None
    return value[wire.HEADER.size :]


def same(value: bytes | None, raw: bytes) -> bool:
    """Tell whether GET has brought this very guard record."""
    return value is not None and value.startswith(wire.FRESH) and value[wire.HEADER.size :] == raw


def question() -> Command:
    """Ask a server which run it is in."""
    return Command(b"", QUESTION, read_run)


def read_run(reply: Any) -> str:
    """Read a run from the reply to QUESTION. Raises NodeError."""
    told = wire.read_figures(reply)
    if told.get("role") != "master":
        raise NodeError("it is a replica, which may miss an invalidation")
    run, history = (str(told.get(name, "")) for name in ("run_id", "master_replid"))
    if not (run.isalnum() and history.isalnum() and (run + history).isascii() and len(run + history) <= LONGEST):
        raise ProtocolError("unexpected reply to INFO: no run_id or master_replid")
    return f"{run}:{history}"
