"""Steps about one cache: what a hit costs, a herd, a stale set."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from pymemcache.client.base import Client

from leasecache.cache import Cache
from leasecache.guard import wire_key
from leasecache.lab.demo.report import Step
from leasecache.lab.demo.stage import Stage
from leasecache.lab.demo.timing import interleaved, on_one_cpu, percentile
from leasecache.lease import Lease, Refused

PROCESSES, THREADS = 4, 50
CALLERS = PROCESSES * THREADS
LOAD_FOR = 0.05  # s
PATIENCE = 60  # s that a caller gives the machine for a connection, an answer or a load; they are many

Call = Callable[[], str]
Connect = Callable[[], Call]  # returns a call that can be made at once


def hit_and_miss(stage: Stage) -> Step:
    """Compare a guarded hit and a miss with a raw round trip."""
    why = "A hit costs one round trip to memcached; the daemon's guard record is read in the same one."
    step = Step(2, "a hit, a miss, a round trip", why)
    server, get_media, media_id = stage.dc1.servers.memcached, stage.dc1.app.get_media, 7
    get_media(media_id)
    raw = _RawClient(server.address, wire_key(int(stage.dc1.guard["generation"], 16), get_media.key(media_id)))
    sides = {"raw": raw.round_trip, "hit": lambda: get_media(media_id), "miss": lambda: _miss(get_media)}
    with on_one_cpu(server.pid):
        times = interleaved(sides, per_slice=100)
    raw.close()
    state = get_media.lookup(media_id).state
    step.measure("raw socket round trip", times["raw"], "µs")
    step.measure("hit, decoded into a dataclass", times["hit"], "µs")
    step.measure("hit ÷ raw round trip", times["hit"] / times["raw"])
    step.measure("miss: invalidate, lease, query, store", times["miss"], "µs")
    step.check("a hit is served from the cache", state == "fresh")
    return step


class _RawClient:
    """The least that any client must do: send the request, read the answer."""

    def __init__(self, address: str, key: bytes) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = b"mg %b N10 c f t v\r\n" % key

    def round_trip(self) -> bytes:
        self._socket.sendall(self._request)
        return self._socket.recv(65536)

    def close(self) -> None:
        self._socket.close()


def _miss(get_media: Any) -> None:
    get_media.invalidate(8)
    get_media(8)


def herd(stage: Stage) -> Step:
    """Let 200 callers meet a cold key whose loader takes 50 ms, without leases and with."""
    why = f"{CALLERS} callers in {PROCESSES} processes want one cold key; its loader takes 50 ms."
    step = Step(3, "a thundering herd", why)
    for name, caller in (("without leases", _plain_caller), ("with leases", _leased_caller)):
        loads, waits = _stampede(stage.dc1.servers.memcached.address, caller)
        step.measure(f"loader calls {name}", loads)
        step.measure(f"wait {name}, p50", percentile(waits, 0.5) * 1e3, "ms")
        step.measure(f"wait {name}, p99", percentile(waits, 0.99) * 1e3, "ms")
        step.check(f"nobody was left without the value {name}", len(waits) == CALLERS)
    step.check("with leases one caller loads for all", loads == 1)
    return step


def _stampede(address: str, caller: Callable[..., Connect]) -> tuple[int, list[float]]:
    """Return the loader's calls and each caller's wait in s."""
    context = multiprocessing.get_context("spawn")
    start, loads, waits = context.Barrier(PROCESSES), context.Value("i", 0), context.Queue()
    processes = [
        context.Process(target=_run_callers, args=(address, caller, start, loads, waits), daemon=True)
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    measured = [wait for _ in processes for wait in waits.get(timeout=2 * PATIENCE)]
    for process in processes:
        process.join()
    return loads.value, measured


def _run_callers(address: str, caller: Callable[..., Connect], start: Any, loads: Any, waits: Any) -> None:
    connect = caller(address, loads)
    mine: list[float] = []
    together = threading.Barrier(THREADS, action=start.wait)

    def run() -> None:
        call = connect()
        together.wait()
        began = time.perf_counter()
        assert call() == "value"
        mine.append(time.perf_counter() - began)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waits.put(mine)


def _load(loads: Any) -> str:
    with loads.get_lock():
        loads.value += 1
    time.sleep(LOAD_FOR)
    return "value"


def _plain_caller(address: str, loads: Any) -> Connect:
    """Get, load on a miss, set: what an application does without leases."""

    def connect() -> Call:
        client = Client(address)
        client.version()
        return lambda: call(client)

    def call(client: Client) -> str:
        found = client.get("herd:plain")
        if found is None:
            found = _load(loads).encode()
            client.set("herd:plain", found)
        client.close()
        return str(found.decode())

    return connect


def _leased_caller(address: str, loads: Any) -> Connect:
    cache = Cache.from_url(f"memcached://{address}?namespace=herd&timeout={PATIENCE}&connect_timeout={PATIENCE}")

    @cache.cached("leased:{n}", ttl=60, lease_for=PATIENCE, wait_for=PATIENCE)
    def get_value(n: int) -> str:
        return _load(loads)

    def connect() -> Call:
        get_value.peek(0)
        return lambda: get_value(1)

    return connect


def stale_set(stage: Stage) -> Step:
    """Let a reader store what it read before a write, under a lease and by a plain set."""
    why = "A reader reads, a writer writes and invalidates, and only then the reader stores what it had read."
    step = Step(4, "a stale set", why)
    app, database, media_id = stage.dc1.app, stage.primary, 9
    read = "select title from media where id = %s"
    client = Client(stage.dc1.servers.memcached.address)
    app.get_media.invalidate(media_id)
    lease = app.cache.lease_get(app.get_media.key(media_id))
    [(title,)] = database.rows(read, media_id)  # the reader has its answer …
    with database.connection() as connection:
        connection.execute("update media set title = 'renamed' where id = %s", [media_id])  # … and is overtaken
    app.get_media.invalidate(media_id)
    client.delete("plain:media:9")
    outcome = app.cache.lease_set(lease, title.encode(), 60) if isinstance(lease, Lease) else None
    client.set("plain:media:9", title)
    plain = client.get("plain:media:9").decode()
    client.close()
    step.measure("the row says", database.rows(read, media_id)[0][0])
    step.measure("a plain set leaves in the cache", plain)
    step.measure("the lease-set was", "refused" if isinstance(outcome, Refused) else "stored")
    step.check("the stale value was refused under its lease", isinstance(outcome, Refused))
    step.check("the next reader sees the new title", app.get_media(media_id).title == "renamed")
    step.check("without leases the stale value stays", plain == title != "renamed")
    return step
