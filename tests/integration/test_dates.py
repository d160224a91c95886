"""A ttl beyond 30 days, which memcached wants as a date by its own clock: sync and async, old servers and new."""

import asyncio
import re
import socketserver
import time
from collections.abc import Callable, Iterator
from typing import Any

import freezegun
import pytest

from leasecache.errors import NodeError, NodeTimeout, ProtocolError
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Fill, Lease, Refused, Stored
from leasecache.stores import classic, clock, meta
from leasecache.stores.amemcached import AsyncMemcachedNode
from leasecache.stores.arouted import AsyncRoutedStore
from leasecache.stores.base import Store
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.routed import RoutedStore
from tests.driven import DrivenStore
from tests.fix_races import FLAGS, KEY, raw
from tests.integration.test_garbage import SETTINGS, VERSION, served

DAY = 86400
MONTH = 30 * DAY
YEAR = 365 * DAY
LAST = 2**31 - 1  # the last date that memcached takes
SLACK = 60  # s that a busy machine may take, and that rounding does
Open = Callable[[str], Any]


@pytest.fixture(params=["sync", "async"])
def open_store(request: pytest.FixtureRequest) -> Iterator[Open]:
    """A function that opens a store on one memcached; whatever it has opened is closed in the end."""
    stores: list[Any] = []

    def open_one(address: str, **options: Any) -> Any:
        if request.param == "sync":
            stores.append(RoutedStore([MemcachedNode(address, **options)]))
        else:
            routed = AsyncRoutedStore([AsyncMemcachedNode(address, **options)])
            stores.append(DrivenStore(routed, asyncio.new_event_loop()))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def dated(each_memcached: MemcachedServer, open_store: Open) -> Any:
    """A store on a memcached of either kind."""
    return open_store(each_memcached.address)


def leased(store: Store, key: bytes = KEY) -> Lease:
    """Ask for a lease that must be free."""
    answer = store.lease_get(key, 10)
    assert isinstance(answer, Lease)
    return answer


def leased_again(store: Store, key: bytes) -> Lease | None:
    """Ask for a lease of a server that is being restarted; None while it does not answer."""
    try:
        return leased(store, key)
    except NodeError:
        return None


def put(store: Store, ttl: float, key: bytes = KEY) -> None:
    """Store a value."""
    assert store.lease_set(leased(store, key), FLAGS, b"value", ttl) == Stored()


def left(server: MemcachedServer, key: bytes = KEY) -> int:
    """Return the s that the item has left."""
    seen = meta.debug(raw(server, b"me %b\r\n" % key).removesuffix(b"\r\n"))
    assert seen is not None
    return seen[0]


def questions(server: MemcachedServer) -> int:
    """Return how often the server was asked for its time; once by the lab, when it was started."""
    return len(re.findall(r"<\d+ stats\s*$", server.log(), re.MULTILINE)) - 1


@pytest.mark.parametrize(
    ("ttl", "wire"), [(0.01, 1), (1.0, 1), (1.99, 1), (59.5, 59), (MONTH, 2592000), (MONTH + 0.9, 2592000)]
)
def test_ttl_is_in_whole_seconds(ttl: float, wire: int) -> None:
    """A ttl is rounded down, but not to 0, which lives for ever; guard: up to 30 days nobody is asked for the time."""

    def now() -> int:
        raise AssertionError

    assert meta.exptime(ttl, now) == wire


@pytest.mark.parametrize(
    ("now", "ttl", "wire"),
    [
        (1_800_000_000, MONTH + 1, 1_802_592_001),
        (1_800_000_000, 40.5 * DAY, 1_803_499_200),
        (1_800_000_000, 20_000 * DAY, LAST),
        (5, MONTH + 1, 2592006),
        (LAST - MONTH - 1, 400 * DAY, LAST),
        (LAST - MONTH, 400 * DAY, MONTH),
        (LAST + 1000, 400 * DAY, MONTH),
    ],
)
def test_more_than_thirty_days_are_a_date(now: int, ttl: float, wire: int) -> None:
    """It counts from the server's time; guard: no date above 2**31 - 1, which memcached takes for one long past."""
    assert meta.exptime(ttl, lambda: now) == wire


@pytest.mark.parametrize("ahead", [MONTH, MONTH + 1])
def test_refreshing_ahead_by_more_than_thirty_days_would_be_a_date(each_memcached: MemcachedServer, ahead: int) -> None:
    """Why refresh_ahead has a limit: 30 days before the expiry are seconds to memcached, one second more is 1970."""
    raw(each_memcached, b"ms race 1 T%d F5\r\nx\r\n" % (MONTH - 60))
    won = raw(each_memcached, b"mg race t R%d\r\n" % ahead).endswith(b" W\r\n")
    assert won is (ahead == MONTH)


@pytest.mark.parametrize("years", [-1, 1])
@pytest.mark.parametrize("ttl", [60, 40 * DAY])
def test_the_clients_wall_clock_does_not_matter(
    each_memcached: MemcachedServer, dated: Store, monkeypatch: pytest.MonkeyPatch, years: int, ttl: int
) -> None:
    """A client whose clock is a year off stores for the ttl; guard: dates are by the server's clock."""
    wrong = time.time() + years * YEAR
    monkeypatch.setattr(time, "time", lambda: wrong)
    put(dated, ttl)
    assert ttl - SLACK < left(each_memcached) <= ttl


def test_a_clock_that_stands_still_in_another_year(each_memcached: MemcachedServer, open_store: Open) -> None:
    """freezegun stops the monotonic clock, too; what was read under one clock is not believed under the other."""
    store = open_store(each_memcached.address, timeout=20, connect_timeout=20)
    for day in (None, "2020-01-01", "2035-01-01", None):
        key = f"{day}{time.monotonic()}".encode()
        if day is None:
            put(store, 40 * DAY, key)
        else:
            with freezegun.freeze_time(day):
                put(store, 40 * DAY, key)
        assert 40 * DAY - SLACK < left(each_memcached, key) <= 40 * DAY


def test_thirty_days_are_seconds_and_one_more_is_a_date(each_memcached: MemcachedServer, dated: Store) -> None:
    """The server is asked for its time by the first ttl above 30 days, and only then; guard: `is_date`."""
    for ttl in (60, MONTH, MONTH + 0.5):
        key = b"seconds:%d" % (ttl * 2)
        put(dated, ttl, key)
        assert int(ttl) - SLACK < left(each_memcached, key) <= ttl
    assert questions(each_memcached) == 0
    put(dated, MONTH + 1)
    assert MONTH + 1 - SLACK < left(each_memcached) <= MONTH + 1
    assert questions(each_memcached) == 1


def test_an_answer_serves_for_a_minute(
    each_memcached: MemcachedServer, dated: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is stored meanwhile, one by one or in a batch, asks once; guard: the reading is kept."""
    monkeypatch.setattr(clock, "KEPT", 1000.0)
    fills = [Fill(leased(dated, b"many:%d" % i), FLAGS, b"value", 40 * DAY) for i in range(100)]
    assert dated.lease_set_many(fills) == [Stored()] * 100
    for i in range(5):
        put(dated, 50 * DAY, b"one:%d" % i)
    assert questions(each_memcached) == 1
    monkeypatch.setattr(clock, "KEPT", 0.0)
    put(dated, 40 * DAY)
    assert questions(each_memcached) >= 2
    assert 40 * DAY - SLACK < left(each_memcached, b"many:99") <= 40 * DAY


@pytest.mark.parametrize(("stale_for", "window"), [(30, 30), (35 * DAY, 35 * DAY), (50 * DAY, 40 * DAY)])
def test_stale_window_of_a_long_lived_value(
    each_memcached: MemcachedServer, dated: Store, open_store: Open, stale_for: int, window: int
) -> None:
    """It is the lesser of stale_for and what was left, a date, too; guard: `exptime` of the window."""
    put(dated, 40 * DAY)
    other = open_store(each_memcached.address)  # as the daemon, which has stored nothing
    for _ in range(2):
        other.invalidate([KEY], stale_for)
        assert window - SLACK < left(each_memcached) <= window
    assert leased(dated).value == b"value"


def test_server_restarted_between_two_stores(
    each_memcached: MemcachedServer, dated: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose clock was put right at its restart is asked anew; guard: a reading is of older connections."""
    read_time = classic.read_time

    def a_year_ahead(data: bytes) -> int | None:
        found = read_time(data)
        return None if found is None else found + YEAR

    with monkeypatch.context() as patch:
        patch.setattr(classic, "read_time", a_year_ahead)
        put(dated, 40 * DAY, b"before")
    assert left(each_memcached, b"before") > YEAR
    each_memcached.kill()
    each_memcached.start()
    lease = wait_until(lambda: leased_again(dated, KEY), 60, "memcached to answer again")
    assert dated.lease_set(lease, FLAGS, b"value", 40 * DAY) == Stored()
    assert 40 * DAY - SLACK < left(each_memcached) <= 40 * DAY


def test_restart_is_found_out_by_the_store_itself(open_store: Open) -> None:
    """A lease-set with a random number that meets an ended connection is sent again, with a date of the new server."""
    with MemcachedServer(recent=True) as server:
        store = open_store(server.address)
        put(store, 40 * DAY)
        lease = leased(store, b"restarted")
        server.kill()
        server.start()
        outcome = store.lease_set(lease, FLAGS, b"value", 40 * DAY)
        assert outcome == Refused("deleted or expired while loading")


class _Timeless(socketserver.StreamRequestHandler):
    """Gives out leases, answers a question for its time with `server.answer`, and counts what is stored."""

    server: Any

    def handle(self) -> None:
        for line in self.rfile:
            if line.startswith(b"version"):
                self.wfile.write(VERSION)
            elif line == b"stats settings\r\n":
                self.wfile.write(SETTINGS)
            elif line.startswith(b"stats"):
                self.wfile.write(self.server.answer)
            elif line.startswith(b"mg"):
                self.wfile.write(b"VA 0 c1 f0 t9 W\r\n\r\n")
            elif line.startswith(b"ms"):
                self.server.stored += 1


TIMELESS: dict[str, tuple[bytes, type[NodeError]]] = {
    "silence": (b"", NodeTimeout),
    "cut off": (b"STAT pid 1\r\nSTAT ti", NodeTimeout),
    "unknown command": (b"ERROR\r\n", ProtocolError),
    "no time": (b"STAT pid 1\r\nEND\r\n", ProtocolError),
    "a time that is none": (b"STAT time soon\r\nEND\r\n", ProtocolError),
    "a time before 1970": (b"STAT time -5\r\nEND\r\n", ProtocolError),
    "more than an answer": (b"STAT time 1700000000\r\nEND\r\nHD\r\n", ProtocolError),
    "no memory": (b"SERVER_ERROR out of memory writing stats\r\n", meta.Complaint),
}


@pytest.mark.parametrize("answer", TIMELESS)
def test_server_that_cannot_tell_its_time(open_store: Open, answer: str) -> None:
    """Nothing is stored, and the NodeError is what any other failure is; guard: no date by another clock."""
    said, kind = TIMELESS[answer]
    with served(_Timeless, answer=said, stored=0) as server:
        limits = {"timeout": 1} if kind is NodeTimeout else {}
        store = open_store(f"127.0.0.1:{server.server_address[1]}", **limits)
        with pytest.raises(NodeError) as caught:
            store.lease_set(leased(store), FLAGS, b"value", 40 * DAY)
        assert type(caught.value) is kind
        assert "memcached 127.0.0.1:" in str(caught.value)
        assert server.stored == 0
        if kind is meta.Complaint:
            assert isinstance(store.lease_get(KEY, 10), Lease)  # it says so itself, and is not left alone
