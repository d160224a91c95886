"""The multiplexed connection without a network: both twins give every request its own replies, and the same errors."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasecache.errors import GuardError, NodeError, NodeTimeout, ProtocolError
from leasecache.guard import Record, ring_mark
from leasecache.lease import Hit, Lease
from leasecache.stores import meta
from leasecache.stores.guarding import Guarding
from leasecache.stores.memcached_link import QUIET
from leasecache.stores.trust import Trust
from tests.twins import TWINS, each_twin

FLAGS = 0x10000001
Request = tuple[str, bytes, int]
HEAD, MIDDLE, END = meta.lease_get(b"%", 10, 0, b"%").split(b"%")
RING, MARK, OTHER_MARK = ring_mark(["test"]), b"0123456789ab", b"ba9876543210"


def record(generation: int = 7, tenure: int = 3, rings: Sequence[bytes] = (RING,), rules: Any = (MARK,)) -> bytes:
    """A guard record as it is stored."""
    kept = Record(generation=generation, tenure=tenure, rings=frozenset(rings), rules=frozenset(rules))
    return kept.to_bytes()


def shown(body: bytes, marks: bytes = b"") -> bytes:
    """The reply that shows a guard record."""
    return b"VA %d%b\r\n%b\r\n" % (len(body), marks, body)


class Line:
    """A transport that notes what is sent, and the owner of the mux over it."""

    latest = 5  # the number of the process's latest connection

    def __init__(self, twin: Any, timeout: float = 60.0, most: int = 1 << 20) -> None:
        self.sent = b""
        self.aborted = False
        self.ends: list[tuple[NodeError | None, bool]] = []
        self.orphans: list[Any] = []
        self.mux = twin.Mux("memcached test", self, self, 3, bytes, timeout, twin.parse_reply, most)
        self.muxes = {asyncio.get_running_loop(): self.mux}
        self.read = twin.MuxReader(self.muxes, (HEAD, MIDDLE, END), FLAGS, meta.read_answers, self.retry)
        self.retries: list[bytes] = []
        self.trust = Trust("shop", RING, "test")
        self.trust.read(record())
        self.guarded = self.guarded_by(twin, MARK)
        self.mux.connection_made(self)

    def guarded_by(self, twin: Any, mark: bytes) -> Any:
        """A reader for the function of this mark."""
        guard = Guarding(self.trust, mark)
        return twin.MuxReader(self.muxes, (HEAD, MIDDLE, END), FLAGS, meta.read_answers, self.retry, guard)

    async def retry(self, key: bytes) -> str:
        self.retries.append(key)
        return "retried"

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def lost(self, mux: Any, error: NodeError | None, failed: bool) -> None:
        self.ends.append((error, failed))

    def orphaned(self, mux: Any, result: Any) -> None:
        self.orphans.append(result)

    def receive(self, data: bytes) -> None:
        """Hand over bytes as a transport does."""
        while data:
            room = self.mux.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            self.mux.buffer_updated(size)
            data = data[size:]


async def result_of(asked: Awaitable[Any]) -> Any:
    """Return what awaiting gives, or the type and text of the error."""
    try:
        return await asked
    except NodeError as error:
        return type(error), str(error)


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def hit(key: bytes, flags: int = FLAGS, marks: bytes = b"") -> bytes:
    return b"VA %d c7 f%d t60%b\r\n%b\r\n" % (len(key), flags, marks, key)


def name(replies: Sequence[Any], epoch: int, born: int, context: Any) -> Any:
    """Read replies into what tells whose they are."""
    return [(reply.code, reply.value) for reply in replies], epoch, born, context


KINDS = ["hit", "long hit", "other flags", "won", "taken", "no room", "batch", "quiet"]
KINDS += [f"guarded {kind}" for kind in KINDS[:6]]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request: its kind, its key, and how many times the key makes the value."""
    key = draw(st.binary(min_size=1, max_size=8)).hex().encode()
    kind = draw(st.sampled_from(KINDS))
    return kind, key, draw(st.integers(1, 20_000)) if "long hit" in kind else 1


def answer_to(kind: str, key: bytes, times: int = 1) -> bytes:
    return {
        "hit": hit(key),
        "long hit": hit(key * times),
        "other flags": hit(key, FLAGS + 1),
        "won": b"VA 0 c8 f0 t10 W\r\n\r\n",
        "taken": b"VA 0 c8 f0 t10 Z\r\n\r\n",
        "no room": b"EN\r\n",
        "batch": hit(key) + b"EN\r\n" + hit(key, 3, b" X Z"),
        "quiet": b"NF\r\nMN\r\n",
    }[kind.removeprefix("guarded ")]


def answers_to(asked: list[Request], body: bytes) -> bytes:
    """What a server answers to requests that leave together: it shows the guard record before the first guarded one."""
    data = b""
    for i, request in enumerate(asked):
        first = "guarded" in request[0] and not any("guarded" in kind for kind, _, _ in asked[:i])
        data += (shown(body) if first else b"") + answer_to(*request)
    return data


def ask(line: Line, kind: str, key: bytes) -> Any:
    if kind == "batch":
        return line.mux.ask(b"batch of %b\r\n" % key, 3, name, key)
    if kind == "quiet":
        return line.mux.ask(b"quiet %b\r\nmn\r\n" % key, QUIET, name, key)
    return line.guarded(key) if "guarded" in kind else line.read(key)


async def conversation(twin: Any, asked: list[Request], data: bytes, cuts: list[int]) -> Any:
    """Ask for all of it, receive `data` cut in pieces, and return what each request and the owner got."""
    line = Line(twin)
    tasks = [asyncio.ensure_future(result_of(ask(line, kind, key))) for kind, key, _ in asked]
    await turn()
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    for start, stop in zip([0, *places], [*places, len(data)], strict=True):
        line.receive(data[start:stop])
    await turn()
    ended = [(type(error), str(error), failed) for error, failed in line.ends]
    line.mux.connection_lost(None)
    return await asyncio.gather(*tasks), ended, line.orphans, line.retries, line.sent


@given(st.lists(requests(), max_size=12), st.lists(st.integers(0, 10**6), max_size=12), st.booleans())
@settings(max_examples=80)
def test_every_request_gets_its_own_replies(asked: list[Request], cuts: list[int], renewed: bool) -> None:
    """However the bytes are cut, each request gets the replies to its own key, in both twins alike.

    Also when the guard record has been written anew since, under the same generation.
    """
    data = answers_to(asked, record(tenure=4 if renewed else 3))
    seen = [asyncio.run(conversation(twin, asked, data, cuts)) for twin in TWINS]
    assert all(other == seen[0] for other in seen)
    results, ended, orphans, retries, sent = seen[0]
    assert (ended, orphans, retries) == ([], [], [])
    assert sent.count(b"mg !guard:shop: v\r\n") == any("guarded" in kind for kind, _, _ in asked)
    for (kind, key, times), result in zip(asked, results, strict=True):
        _, guarded, kind = kind.rpartition("guarded ")
        if kind in ("hit", "long hit"):
            found = result.value if isinstance(result, Hit) and renewed and guarded else result
            assert found == key * times
        elif kind == "other flags":
            assert (type(result), result.value, result.flags) == (Hit, key, FLAGS + 1)
        elif kind in ("won", "no room"):
            assert (type(result), result.key) == (Lease, key)
        elif kind == "batch":
            assert result == ([(b"VA", key), (b"EN", None), (b"VA", key)], 5, 3, key)
        elif kind == "quiet":
            assert result == ([(b"NF", None)], 5, 3, key)
        if guarded and kind in ("won", "taken", "other flags"):
            assert result.token.generation == 7


@given(st.lists(requests(), max_size=12), st.lists(st.integers(0, 10**6), max_size=6))
@settings(max_examples=40)
def test_nothing_is_believed_of_another_generation(asked: list[Request], cuts: list[int]) -> None:
    """After a bump every guarded request is made anew, and what it has won goes back; the others are not touched."""
    data = answers_to(asked, record(generation=8))
    seen = [asyncio.run(conversation(twin, asked, data, cuts)) for twin in TWINS]
    assert all(other == seen[0] for other in seen)
    results, ended, orphans, retries, _ = seen[0]
    guarded = [request for request in asked if "guarded" in request[0]]
    assert (ended, retries) == ([], [key for _, key, _ in guarded])
    won = [orphan.key for orphan in orphans if isinstance(orphan, Lease) and orphan.token]
    assert won == [key for kind, key, _ in guarded if "won" in kind]
    found = [result for (kind, _, _), result in zip(asked, results, strict=True) if "guarded" in kind]
    assert found == ["retried"] * len(guarded)


PIECES = st.sampled_from(
    [
        *(hit(b"value"), hit(b"v", FLAGS, b" W"), b"VA ", b"HD\r\n", b"EN\r\n", b"MN\r\n", b"VA 1 c1 f0 t-1\r\nx\r\n"),
        *(
            b"\r\n",
            b"\n",
            b"SERVER_ERROR out of memory\r\n",
            b"ME key exp=1\r\n",
            b"ERROR\r\n",
            b"x" * 3000,
            b" t1\r\n",
        ),
        *(b"VA 9999999999 t1\r\n", b"VA 2 f268435457 c1 t1 q\r\n", b"VA 2 c f1\r\n", b"VA 1 f268435457 t-2\r\nx\r\n"),
        *(shown(record()), shown(record(tenure=4)), shown(record(generation=8)), shown(record(rules=()))),
        *(shown(record(), b" X"), shown(record())[:60], shown(b"")),
        *(b"VA 5 f268435457 c99999999999999999999", b"VA 1 f268435457 c18446744073709551615 t4294967296\r\nx\r\n"),
    ]
)


@given(
    st.lists(requests(), max_size=5),
    st.lists(st.one_of(PIECES, st.binary(max_size=5)), max_size=8),
    st.lists(st.integers(0, 10**6), max_size=3),
)
@settings(max_examples=300)
def test_twins_agree_on_any_bytes(asked: list[Request], pieces: list[bytes], cuts: list[int]) -> None:
    """Whatever comes, both twins give every request the same and end the connection for the same reason."""
    data = b"".join(pieces)
    seen = [asyncio.run(conversation(twin, asked, data, cuts)) for twin in TWINS]
    assert all(other == seen[0] for other in seen)


def test_requests_of_one_turn_leave_together() -> None:
    """What tasks ask for in one turn of the loop is joined in the order in which they asked; much is sent at once."""

    async def main(twin: Any) -> None:
        line = Line(twin)
        asked = [line.read(b"key%d" % i) for i in range(3)]
        assert line.sent == b""
        await turn()
        assert line.sent == b"".join([meta.lease_get(b"key%d" % i, 10) for i in range(3)])
        line.receive(b"".join([hit(b"%d" % i) for i in range(3)]))
        assert [await pending for pending in asked] == [b"0", b"1", b"2"]
        line.sent = b""
        many = [line.read(b"key%d" % i) for i in range(300)]
        assert 4096 <= len(line.sent) < 300 * 25
        await turn()
        assert line.sent == b"".join([meta.lease_get(b"key%d" % i, 10) for i in range(300)])
        for pending in many:
            pending.discard()

    for twin in TWINS:
        asyncio.run(main(twin))


@each_twin
def test_result_that_came_just_before_the_cancellation_is_handed_over(twin: Any) -> None:
    """A task cancelled between its reply and its next step leaves the lease to the owner; guard: `_abandon`."""

    async def main() -> None:
        line = Line(twin)
        first = asyncio.ensure_future(result_of(line.read(b"first")))
        second = asyncio.ensure_future(result_of(line.read(b"second")))
        await turn()
        line.receive(answer_to("won", b""))
        second.cancel()
        line.receive(answer_to("won", b""))
        first.cancel()
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert second.cancelled()
        assert [lease.key for lease in line.orphans] == [b"second", b"first"]

    asyncio.run(main())


@each_twin
def test_reply_to_a_cancelled_request_is_read_and_passed_to_the_owner(twin: Any) -> None:
    """Cancelled requests keep their place in the queue; the requests around them get their own replies."""

    async def main() -> None:
        line = Line(twin)
        tasks = [asyncio.ensure_future(result_of(line.read(b"key%d" % i))) for i in range(5)]
        await turn()
        tasks[1].cancel()
        tasks[3].cancel()
        await turn()
        line.receive(hit(b"0") + answer_to("won", b"") + hit(b"2") + hit(b"3") + hit(b"4"))
        assert [await tasks[i] for i in (0, 2, 4)] == [b"0", b"2", b"4"]
        assert [orphan.key for orphan in line.orphans if isinstance(orphan, Lease)] == [b"key1"]
        assert line.mux.open

    asyncio.run(main())


@each_twin
def test_value_larger_than_any_the_server_stores_is_not_waited_for(twin: Any) -> None:
    """Its size is looked at when it is stated; guard: the limit that the greeting has given."""

    async def main() -> None:
        line = Line(twin, most=100)
        tasks = [asyncio.ensure_future(result_of(line.read(b"key%d" % i))) for i in range(3)]
        await turn()
        line.receive(hit(b"x" * 100))
        assert await tasks[0] == b"x" * 100
        line.receive(b"VA 101 c7 f1\r\n")
        assert await tasks[1] == (
            ProtocolError,
            "memcached test: a value of 101 bytes, and the server stores 100 at most",
        )
        assert line.aborted
        guarded = Line(twin, most=100)
        asked = asyncio.ensure_future(result_of(guarded.guarded(b"key")))
        await turn()
        guarded.receive(b"VA 999999999\r\n")
        assert (await asked)[0] is ProtocolError

    asyncio.run(main())


@each_twin
def test_quiet_command_is_not_answered_for_ever(twin: Any) -> None:
    """Before MN there may be as many replies as there were commands; guard: the count of them."""

    async def main() -> None:
        line = Line(twin)
        asked = asyncio.ensure_future(result_of(line.mux.ask(meta.delete_quietly([b"a", b"b"]), QUIET, name, None)))
        more = asyncio.ensure_future(result_of(line.mux.ask(meta.delete_quietly([b"a", b"b"]), QUIET, name, None)))
        await turn()
        line.receive(b"NF\r\nNF\r\nMN\r\n")
        assert await asked == ([(b"NF", None)] * 2, 5, 3, None)
        line.receive(b"NF\r\n" * 4)
        assert (await more) == (ProtocolError, "memcached test: more replies than commands")

    asyncio.run(main())


FATAL: dict[str, tuple[bytes, type[NodeError], str]] = {
    "garbage": (b"HTTP/1.1 400\r\n", ProtocolError, "unexpected reply b'HTTP/1.1 400'"),
    "another command's reply": (b"HD\r\n", ProtocolError, "unexpected reply HD"),
    "line without end": (b"V" * 5000, ProtocolError, "longer than the protocol allows"),
}


@each_twin
@pytest.mark.parametrize("fault", FATAL)
def test_nonsense_fails_everything_that_waits(twin: Any, fault: str) -> None:
    """A reply that the command cannot have ends the connection; later replies reach nobody."""
    data, kind, text = FATAL[fault]

    async def main() -> None:
        line = Line(twin)
        tasks = [asyncio.ensure_future(result_of(line.read(b"key%d" % i))) for i in range(3)]
        await turn()
        line.receive(hit(b"0") + data)
        line.receive(hit(b"1"))
        results = await asyncio.gather(*tasks)
        assert results[0] == b"0"
        assert [result[0] for result in results[1:]] == [kind, kind]
        assert all(result[1].startswith("memcached test: ") and text in result[1] for result in results[1:])
        assert line.aborted
        assert not line.mux.open
        assert [(type(error), failed) for error, failed in line.ends] == [(kind, True)]
        with pytest.raises(kind):
            line.mux.ask(b"mn\r\n", 1, name, None)

    asyncio.run(main())


@each_twin
def test_reply_that_nobody_asked_for_ends_the_connection(twin: Any) -> None:
    """It would be taken for the answer to the next request."""

    async def main() -> None:
        line = Line(twin)
        asked = line.read(b"key")
        await turn()
        line.receive(hit(b"0") + hit(b"1"))
        assert await asked == b"0"
        assert not line.mux.open
        assert str(line.ends[0][0]) == "a reply that nobody asked for"

    asyncio.run(main())


@each_twin
def test_refusal_concerns_its_own_request_alone(twin: Any) -> None:
    """A SERVER_ERROR is a whole reply: the connection stays."""

    async def main() -> None:
        line = Line(twin)
        tasks = [asyncio.ensure_future(result_of(line.read(b"key%d" % i))) for i in range(2)]
        await turn()
        line.receive(b"SERVER_ERROR out of memory\r\n" + hit(b"1"))
        failed, found = await asyncio.gather(*tasks)
        assert "out of memory" in failed[1]
        assert (found, line.mux.open, line.ends) == (b"1", True, [])

    asyncio.run(main())


@each_twin
def test_oldest_request_sets_the_deadline(twin: Any) -> None:
    """Replies to others do not put off a request that is overdue; all that wait fail with it."""

    async def main() -> None:
        line = Line(twin, timeout=0.05)
        tasks = [asyncio.ensure_future(result_of(line.read(b"key%d" % i))) for i in range(2)]
        await turn()
        line.receive(hit(b"0"))
        assert await tasks[0] == b"0"
        assert (await tasks[1])[0] is NodeTimeout
        assert [(type(error), failed) for error, failed in line.ends] == [(NodeTimeout, True)]

    asyncio.run(main())


@each_twin
def test_end_by_the_server(twin: Any) -> None:
    """Readers ask again elsewhere when a connection ends that has answered before; other requests fail."""

    async def main(served: bool) -> tuple[Any, Any, Line]:
        line = Line(twin)
        if served:
            first = line.read(b"first")
            line.receive(hit(b"0"))
            assert await first == b"0"
        read = asyncio.ensure_future(result_of(line.read(b"key")))
        asked = asyncio.ensure_future(result_of(line.mux.ask(b"mn\r\n", 1, name, None)))
        await turn()
        line.mux.connection_lost(None)
        return await read, await asked, line

    lost = (NodeError, "memcached test: connection closed by the server")
    read, asked, line = asyncio.run(main(served=True))
    assert (read, asked, line.retries) == ("retried", lost, [b"key"])
    assert line.ends[0][1] is False
    read, asked, line = asyncio.run(main(served=False))
    assert (read, asked, line.retries) == (lost, lost, [])
    assert line.ends[0][1] is True


@each_twin
def test_backpressure(twin: Any) -> None:
    """While the transport has enough, requests gather until the mux is full; readers then take the long way."""

    async def main() -> None:
        line = Line(twin)
        line.mux.pause_writing()
        asked = line.mux.ask(b"x" * 262_144, 1, name, None)
        await turn()
        assert line.mux.full
        assert line.sent == b""
        assert await line.read(b"key") == "retried"
        drained = line.mux.drained()
        line.mux.resume_writing()
        await drained
        assert not line.mux.full
        assert len(line.sent) == 262_144
        line.receive(b"HD\r\n")
        await asked

    asyncio.run(main())


@each_twin
def test_close_waits_for_what_was_asked(twin: Any) -> None:
    """Nothing new is taken, and the connection ends with the last answer."""

    async def main() -> None:
        line = Line(twin)
        asked = line.read(b"key")
        line.mux.close()
        await turn()
        assert not line.aborted
        with pytest.raises(NodeError, match="connection is closing"):
            line.mux.ask(b"mn\r\n", 1, name, None)
        line.receive(hit(b"0"))
        assert await asked == b"0"
        assert line.aborted
        assert line.ends == [(None, False)]

    asyncio.run(main())


@each_twin
def test_guarded_requests_of_one_write_share_a_reading_of_the_record(twin: Any) -> None:
    """It stands in front of the first of them, so the server reads it after they were asked and before any key.

    Those that leave later have one of their own; guard: `_send` forgets the reading that is on its way.
    """
    ask_for_record = meta.read_record(b"!guard:shop:")

    def requested(*names: bytes) -> bytes:
        return b"".join([meta.lease_get(name, 10) for name in names])

    async def main() -> None:
        line = Line(twin)
        first = [line.read(b"a"), line.guarded(b"b"), line.read(b"c"), line.guarded(b"d")]
        await turn()
        prefix = b"%016x:" % 7
        assert line.sent == requested(b"a") + ask_for_record + requested(prefix + b"b", b"c", prefix + b"d")
        line.sent = b""
        second = line.guarded(b"e")
        await turn()
        assert line.sent == ask_for_record + requested(prefix + b"e")
        line.receive(hit(b"a") + shown(record()) + hit(b"b") + hit(b"c") + hit(b"d"))
        line.receive(b"EN\r\n" + hit(b"e"))
        assert [await pending for pending in first] == [b"a", b"b", b"c", b"d"]
        with pytest.raises(GuardError, match="no guard record"):
            await second
        line.sent = b""
        many = [line.guarded(b"key%d" % i) for i in range(300)]
        assert line.sent == b"", "absent: the record has to be read first"
        line.trust.read(record())
        many += [line.guarded(b"key%d" % i) for i in range(300)]
        await turn()
        writes = line.sent.count(ask_for_record)
        assert 2 <= writes <= 10
        assert line.sent.count(b"mg ") == writes + 300
        for pending in many[300:]:
            pending.discard()
        line.mux.connection_lost(None)
        assert [await pending for pending in many[:300]] == ["retried"] * 300

    asyncio.run(main())


VERDICTS: dict[str, tuple[bytes, Any]] = {
    "fresh": (shown(record()), b"value"),
    "written anew": (shown(record(tenure=9)), Hit),
    "absent": (b"EN\r\n", (GuardError, "test: no guard record, so nothing there is believed; is the daemon running?")),
    "a stub": (shown(b""), (GuardError, "test: no guard record, so nothing there is believed; is the daemon running?")),
    "voided": (
        shown(record(), b" X"),
        (GuardError, "test: no guard record, so nothing there is believed; is the daemon running?"),
    ),
    "garbage": (
        shown(b"1 7 - x"),
        (GuardError, "test: no guard record, so nothing there is believed; is the daemon running?"),
    ),
    "without the rule": (
        shown(record(rules=[OTHER_MARK])),
        (GuardError, "test: the daemon does not have this function's rules"),
    ),
    "without the ring": (
        shown(record(rings=[b"0" * 12])),
        (GuardError, "test: the daemon serves other nodes or weights than those of this cache's URL"),
    ),
    "of another generation": (shown(record(generation=8)), "retried"),
    "refused": (
        b"SERVER_ERROR out of memory\r\n",
        (meta.Complaint, "memcached test: unexpected reply SERVER_ERROR out of memory"),
    ),
}


@each_twin
@pytest.mark.parametrize("verdict", VERDICTS)
def test_verdicts(twin: Any, verdict: str) -> None:
    """A guarded request is answered only if the record that came before its reply vouches for it.

    The request of somebody who is not guarded is none of its business, and the connection goes on. Guard: in the twins,
    the comparison of the record seen with the one asked under.
    """
    reply, expected = VERDICTS[verdict]

    async def main() -> None:
        line = Line(twin)
        guarded = asyncio.ensure_future(result_of(line.guarded(b"value")))
        won = asyncio.ensure_future(result_of(line.guarded(b"won")))
        other = asyncio.ensure_future(result_of(line.read(b"other")))
        await turn()
        line.receive(reply + hit(b"value") + answer_to("won", b"") + hit(b"other"))
        found, lease = await guarded, await won
        assert (type(found) if expected is Hit else found) == expected
        assert await other == b"other"
        assert line.mux.open
        if verdict in ("fresh", "written anew"):
            assert (lease.key, lease.token.generation, line.orphans) == (b"won", 7, [])
        else:
            assert lease == expected
            assert [(o.key, o.token.generation) for o in line.orphans if isinstance(o, Lease)] == [(b"won", 7)]

    asyncio.run(main())


@each_twin
def test_nonsense_instead_of_a_record_ends_the_connection(twin: Any) -> None:
    """What is no answer to a look may be another's answer."""

    async def main() -> None:
        line = Line(twin)
        tasks = [asyncio.ensure_future(result_of(line.guarded(b"key%d" % i))) for i in range(2)]
        await turn()
        line.receive(b"HD\r\n" + hit(b"0") + hit(b"1"))
        assert [(await task)[0] for task in tasks] == [ProtocolError] * 2
        assert line.aborted

    asyncio.run(main())


@each_twin
def test_function_that_the_known_record_does_not_name_asks_first(twin: Any) -> None:
    """Its request is not made under a record that cannot vouch for it."""

    async def main() -> None:
        line = Line(twin)
        assert await line.guarded_by(twin, OTHER_MARK)(b"key") == "retried"
        await turn()
        assert line.sent == b""
        line.trust.read(None)
        assert await line.guarded(b"key") == "retried"
        assert line.sent == b""
        line.trust.read(record(generation=9))
        line.guarded(b"key").discard()
        await turn()
        assert b"%016x:key" % 9 in line.sent

    asyncio.run(main())


@each_twin
def test_cancelled_guarded_request_leaves_its_record_to_the_others(twin: Any) -> None:
    """The reading of the record is nobody's in particular: who asked first may go."""

    async def main() -> None:
        line = Line(twin)
        tasks = [asyncio.ensure_future(result_of(line.guarded(b"key%d" % i))) for i in range(3)]
        await turn()
        tasks[0].cancel()
        await turn()
        line.receive(shown(record()) + answer_to("won", b"") + hit(b"1"))
        tasks[2].cancel()
        line.receive(hit(b"2"))
        assert await tasks[1] == b"1"
        assert [(o.key, o.token.generation) for o in line.orphans if isinstance(o, Lease)] == [(b"key0", 7)]
        assert line.mux.idle

    asyncio.run(main())
