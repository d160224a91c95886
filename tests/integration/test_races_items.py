"""Races that are about what an item looks like on the wire and on the server."""

import re
from collections.abc import Iterator

import pytest

from leasecache import Cache
from leasecache.lab import MemcachedServer
from leasecache.lease import Fill, Hit, Lease, Refused, Stored, Wait
from leasecache.stores import meta
from leasecache.stores.memcached import MemcachedNode
from tests.fix_races import FLAGS, KEY, cas, raw, won

REQUEST = re.compile(r"<\d+ ((?:mg|ms|md|me|mn)\b.*)")  # in the log of memcached -vv
AHEAD = 2**31 - 1


def requests_of(server: MemcachedServer) -> Iterator[tuple[str, str, list[str]]]:
    """Return what the server was asked: command, key, flags."""
    for line in REQUEST.findall(server.log()):
        command, *rest = line.split()
        yield command, rest[0] if rest else "", rest[2:] if command == "ms" else rest[1:]


@pytest.fixture
def asked(each_memcached: MemcachedServer, each_node: MemcachedNode) -> list[tuple[str, str, list[str]]]:
    """Every request that this library makes of an item in all its states."""
    read = each_node.reader(10, AHEAD, FLAGS)
    assert isinstance(read(KEY), Lease)
    waiting = each_node.reader(10, 0, FLAGS)(KEY)
    assert isinstance(waiting, Wait)
    assert waiting.token is not None
    thief = each_node.steal(KEY, waiting.token, 10)
    assert isinstance(thief, Lease)
    assert each_node.lease_set_many([Fill(thief, FLAGS, b"value", 60)]) == [Stored()]
    each_node.invalidate([KEY, b"absent"], 30)
    each_node.release(won(each_node))
    each_node.release(won(each_node, b"stub"))
    each_node.batch_reader(10, AHEAD, FLAGS)([KEY, b"a"])
    each_node.look(KEY)
    each_node.invalidate([KEY, b"absent"])
    return list(requests_of(each_memcached))


def test_no_reader_prolongs_a_stub_or_echoes_a_key(asked: list[tuple[str, str, list[str]]]) -> None:
    """Every mg asks with N and without T; guard: no T, k or b beside it, though each would be understood.

    T lets a loser stretch the stub for ever. With b and k the server echoes the raw key, line ends included.
    """
    gets = [flags for command, _, flags in asked if command == "mg"]
    assert len(gets) >= 6
    assert all(any(flag.startswith("N") for flag in flags) for flags in gets)
    letters = {flag[0] for flags in gets for flag in flags}
    assert letters <= set("NcftvRE"), letters
    assert all(flags.index("t") > 0 for flags in gets)


def test_every_store_presents_a_token_and_never_invalidates(asked: list[tuple[str, str, list[str]]]) -> None:
    """Each ms has C; guards: there is no lease-set without it, and none has I, which lets an old winner in as stale."""
    sets = [flags for command, _, flags in asked if command == "ms"]
    assert sets
    for flags in sets:
        assert sum(flag.startswith("C") for flag in flags) == 1
        assert {flag[0] for flag in flags} <= set("CTFcE")
        assert "F0" not in flags


def test_deletions_leave_no_false_hit(asked: list[tuple[str, str, list[str]]]) -> None:
    """No md has x, which leaves an empty hit; T comes only with I, and a release or theft (C, answered) without T."""
    deletions = [flags for command, _, flags in asked if command == "md"]
    assert any("q" in flags and any(flag.startswith("T") for flag in flags) for flags in deletions)
    assert any("q" not in flags and any(flag.startswith("C") for flag in flags) for flags in deletions)
    for flags in deletions:
        letters = {flag[0] for flag in flags}
        assert "x" not in letters
        assert "I" in letters or "T" not in letters
        assert "T" not in letters or letters >= {"C", "q"}


def test_requests_keep_within_the_limits_of_the_protocol(asked: list[tuple[str, str, list[str]]]) -> None:
    """At most 20 flags in a command, whole seconds, and never 0 s, which would be no expiry at all."""
    for _, _, flags in asked:
        assert len(flags) <= 20
        assert all(re.fullmatch(r"[A-Z][1-9]\d*|[a-z]|[IO]\d*", flag) for flag in flags), flags


def test_lease_and_refresh_ahead_are_rounded_up() -> None:
    """A holder gets the next whole second of lease_for, and a reader refreshes rather early than late."""
    assert meta.lease_get(KEY, 1.1, 2.5).split()[2::5] == [b"N2", b"R3"]


def test_other_clients_take_a_lease_for_a_value_and_we_never_a_value_for_a_lease(
    each_memcached: MemcachedServer, each_node: MemcachedNode
) -> None:
    """To a classic client a stub is an empty value, so add and incr fail; guard: our values have flags, even if empty.

    A value of flags 0 and size 0 could not be told from a stub: it would be won again by every reader.
    """
    lease = won(each_node)
    assert raw(each_memcached, b"get race\r\n") == b"VALUE race 0 0\r\n\r\nEND\r\n"
    assert raw(each_memcached, b"add race 1 0 1\r\nx\r\n") == b"NOT_STORED\r\n"
    assert raw(each_memcached, b"incr race 1\r\n").startswith(b"CLIENT_ERROR")
    assert each_node.lease_set(lease, FLAGS, b"", 60) == Stored()
    assert isinstance(each_node.lease_get(KEY, 10), Hit)
    assert raw(each_memcached, b"get race\r\n") == b"VALUE race %d 0\r\n\r\nEND\r\n" % FLAGS


def test_empty_result_of_a_function_is_cached(memcached: MemcachedServer) -> None:
    """Functions that return nothing, empty text or empty bytes load once; guard: no codec has the tag 0."""
    loads: list[str] = []
    with Cache.from_url(memcached.url) as cache:

        @cache.cached("raw:{n}", ttl=60)
        def raw_bytes(n: int) -> bytes:
            loads.append("bytes")
            return b""

        @cache.cached("text:{n}", ttl=60)
        def text(n: int) -> str:
            loads.append("text")
            return ""

        @cache.cached("none:{n}", ttl=60)
        def nothing(n: int) -> int | None:
            loads.append("none")
            return None

        for _ in range(3):
            assert (raw_bytes(1), text(1), nothing(1)) == (b"", "", None)
    assert sorted(loads) == ["bytes", "none", "text"]


def test_late_value_that_is_too_large_does_not_delete_its_successor(
    each_memcached: MemcachedServer, each_node: MemcachedNode
) -> None:
    """A refused holder of a huge value leaves the new value alone; guard: the size is checked before it is sent.

    The raw store shows that the server deletes the key, though the token is wrong.
    """
    late = won(each_node)
    each_node.invalidate([KEY])
    assert each_node.lease_set(won(each_node), FLAGS, b"new", 60) == Stored()
    assert isinstance(each_node.lease_set(late, FLAGS, b"x" * 2**21, 60), Refused)
    assert isinstance(each_node.lease_get(KEY, 10), Hit)
    request = b"ms race %d C%d T60 F1\r\n%b\r\n" % (2**21, cas(late), b"x" * 2**21)
    assert raw(each_memcached, request) == b"SERVER_ERROR object too large for cache\r\n"
    assert isinstance(each_node.lease_get(KEY, 10), Lease)


def test_invalidation_of_nothing_leaves_nothing(each_memcached: MemcachedServer, each_node: MemcachedNode) -> None:
    """A soft invalidation of a missing key makes no item; a lease won before it and run out meanwhile is refused."""
    lease = won(each_node)
    each_node.invalidate([KEY])
    each_node.invalidate([KEY], 30)
    assert raw(each_memcached, b"me race\r\n") == b"EN\r\n"
    assert isinstance(each_node.lease_set(lease, FLAGS, b"old", 60), Refused)
    assert won(each_node).value is None


@pytest.mark.parametrize("left", [b"-20", b"20"])
def test_window_of_both_signs(left: bytes) -> None:
    """`me` shows the time left as a negative number on old servers and as a positive one on others."""
    line = b"race exp=%b la=0 cas=3 fetch=no cls=1 size=65" % left
    assert meta.debug(b"ME " + line) == (20, 3)


def test_key_that_would_end_a_command_is_echoed_raw_by_the_server_and_refused_by_us(
    each_memcached: MemcachedServer,
) -> None:
    """With b, N and k a server answers another client with the raw key; guard: we send no b, and refuse such a key."""
    echoed = raw(each_memcached, b"mg eA0KSEQNCnk= b N10 k v\r\n")  # x, CRLF, HD, CRLF, y
    assert b"\r\nHD\r\n" in echoed
    with Cache.from_url(each_memcached.url) as cache, pytest.raises(ValueError, match="visible ASCII"):
        cache.lease_get(b"x\r\nHD\r\ny")
