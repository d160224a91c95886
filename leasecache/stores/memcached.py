"""Leases on one memcached server, by the meta protocol."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from pymemcache.client.base import Client

from leasecache import _accel
from leasecache._accel import Reply, Wire, delete_requests
from leasecache.codecs import UNCACHEABLE
from leasecache.errors import NodeError
from leasecache.guard import NO_RUN
from leasecache.lease import NO_CONNECTION, Answer, Ask, Fill, Hit, Lease, Refused, Token
from leasecache.stores import meta
from leasecache.stores.base import BatchReader, Outcome, Reader
from leasecache.stores.errand import Errand
from leasecache.stores.guarding import GuardedBatch
from leasecache.stores.memcached_link import QUIET, Build, MemcachedLink
from leasecache.stores.pool import Connection
from leasecache.stores.trust import Known

CHUNK = 32 * 1024  # bytes of requests sent before their replies are read; fits any socket buffer
DELETIONS = 128 * 1024  # the same of deletions, whose replies are half as long at most, 4 bytes each

T = TypeVar("T")


class MemcachedNode(MemcachedLink):
    """One memcached server: leases by the meta protocol over a pool of connections."""

    def lease_get(self, key: bytes, lease_for: float, refresh_ahead: float = 0, mark: bytes | None = None) -> Answer:
        """Return the value, or the lease to load it, or who has it. Raises NodeError."""
        if mark is not None:
            return only(self._get_guarded([Ask(key, lease_for, refresh_ahead, mark)]))
        return self._exchange(
            lambda c: meta.lease_get(key, lease_for, refresh_ahead, c.mark()), 1, meta.read_answers, (key,)
        )[0]

    def reader(self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None) -> Reader:
        """Return a lease-get of a key that gives the value alone when it is a plain hit with these client flags.

        A plain hit over an idle connection takes the short way; everything else goes the way of `lease_get`.
        """
        return self._reader(lease_for, refresh_ahead, flags, mark)

    def lease_get_many(self, asks: Sequence[Ask]) -> list[Answer | NodeError]:
        """Return an answer per ask, in order, or its GuardError; one round trip per 32 KiB. Raises NodeError."""
        answers: list[Answer | NodeError] = []
        for part in chunks(asks, size_of_ask):
            if any(ask.mark is not None for ask in part):
                answers += self._get_guarded(part)
            else:
                answers += self._exchange(batch_request(part), len(part), meta.read_answers, [ask.key for ask in part])
        return answers

    def batch_reader(
        self, lease_for: float, refresh_ahead: float, flags: int, mark: bytes | None = None
    ) -> BatchReader:
        """Return a lease-get of many keys that gives the values alone of plain hits with these client flags."""
        return self._reader(lease_for, refresh_ahead, flags, mark).many

    def steal(self, key: bytes, token: Token, lease_for: float, mark: bytes | None = None) -> Answer:
        """Void the lease that `token` names, unless it is gone, and answer as a lease-get then does. Raises NodeError.

        Of many who steal one token one gets a lease: the server compares the CAS.
        """
        self._present(token.epoch, lambda c: meta.steal(key, token, c.mark()), 1, meta.read_nothing, None)
        return self.lease_get(key, lease_for, mark=mark)

    def lease_set(self, lease: Lease, flags: int, body: bytes, ttl: float) -> Outcome:
        """Store under the lease. Raises NodeError.

        Of a value that the server cannot hold there is a mark instead, so that nobody waits for it: UNCACHEABLE.
        """
        return self.lease_set_many([Fill(lease, flags, body, ttl)])[0]

    def lease_set_many(self, fills: Sequence[Fill]) -> list[Outcome]:
        """Store under each lease, with one round trip per 32 KiB. Raises NodeError."""
        outcomes: list[Outcome] = [Refused("the server had no room for a lease, or holds somebody else's value")] * len(
            fills
        )
        backed = [i for i, fill in enumerate(fills) if fill.lease.token is not None]
        for part in chunks(backed, lambda i: len(fills[i].lease.key) + len(fills[i].body) + meta.REQUEST_OVERHEAD):
            for i, outcome in zip(part, self._store([fills[i] for i in part]), strict=True):
                outcomes[i] = outcome
        return outcomes

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next reader wins at once. Raises NodeError."""
        if lease.token is not None and meta.release(lease) is not None:
            self._present(lease.token.epoch, lambda c: meta.release(lease, c.mark()) or b"", 1, meta.read_nothing, None)

    def invalidate(self, keys: Sequence[bytes], stale_for: float = 0) -> None:
        """Void leases; drop the values or leave them stale for at most `stale_for` s.

        Returns once the server has acknowledged every key. Raises NodeError when it has not; repeating is safe.
        """
        self._invalidate(keys, stale_for, None)

    def invalidate_under(self, guard_key: bytes, keys: Sequence[bytes], stale_for: float = 0) -> bytes | None:
        """Invalidate these keys, which are those on the wire; then return the guard record, None = absent.

        Raises NodeError.
        """
        return self._invalidate(keys, stale_for, guard_key)

    def begin_invalidation(self, guard_key: bytes | None, keys: Sequence[bytes]) -> Errand | None:
        """Begin what `invalidate_under` does without `stale_for`, for who cannot wait; no key, no record.

        None: that cannot be done without waiting, or would take more than one exchange.
        """

        def read(replies: Sequence[Reply]) -> bytes | None:
            deleted, record = meta.split_record(replies, guard_key)
            meta.read_acknowledgement(deleted, 0, 0, None)
            return record

        requests = delete_requests(dict.fromkeys(keys), DELETIONS)
        if len(requests) != 1:
            return None
        return self._begin(meta.then_record(requests[0] + meta.NOOP, guard_key), read)

    def run(self) -> str:
        """Return the mark of a server that forgets everything when it ends."""
        return NO_RUN

    def look(self, key: bytes, mark: bytes | None = None) -> Hit | None:
        """Return the value without touching leases or recency; the answer does not tell whether it is stale.

        Raises NodeError.
        """
        self._down.check(f"memcached {self.name}")
        with self._asking() as client:
            if mark is not None:
                key = self._trusted().judge(_record(client, self._trusted().key), mark).prefix + key
            for _ in range(10):  # until both answers are about the same version of the item
                seen = meta.debug(client.raw_command(b"me " + key))
                if seen is None:
                    return None
                left, version = seen
                (flags, value), cas = client.gets(key, default=(0, b""), cas_default=None)
                if cas is not None and int(cas) == version:
                    break
            return Hit(value, flags, left) if flags else None

    def stats(self) -> dict[str, Any]:
        """Return the server's own figures (memcached doc/protocol.txt, "General-purpose statistics")."""
        with self._asking() as client:
            return {name.decode(): value for name, value in client.stats().items()}

    def _reader(self, lease_for: float, refresh_ahead: float, flags: int, guard: bytes | None) -> _accel.NodeReader:
        def rest(
            keys: Sequence[bytes], connection: Connection[Wire] | None, found: Any, epoch: int, known: Known | None
        ) -> Sequence[Any]:
            asks = [Ask(key, lease_for, refresh_ahead, guard) for key in keys]
            answers = self._read_rest(keys, connection, found, epoch, known) if connection else None
            if answers is None:
                return self.lease_get_many(asks)
            return answers if known is None else self._get_guarded(asks, (known, answers))

        tail = meta.lease_get(b"", lease_for, refresh_ahead).removeprefix(b"mg ").removesuffix(b"\r\n")
        trust = None if guard is None else self._trusted()
        return _accel.NodeReader(self._pool, self._down, self._epoch, tail, flags, rest, trust, guard)

    def _read_rest(
        self, keys: Sequence[bytes], connection: Connection[Wire], found: Any, epoch: int, known: Known | None
    ) -> list[Any] | None:
        """Return what a reader's replies mean, None if it may go better over another connection. Raises NodeError."""
        try:
            answers = _read_rest(keys, connection, found, epoch, known)
        except NodeError as error:
            self._broke(connection, error)
            return None
        except BaseException:
            self._pool.discard(connection)
            raise
        self._pool.release(connection)
        return answers

    def _get_guarded(
        self, asks: Sequence[Ask], begun: tuple[Known, Sequence[Any]] | None = None
    ) -> list[Answer | NodeError]:
        """Return an answer per ask, or its GuardError. Raises NodeError.

        `begun`: they have been asked for under this record, which has brought the record as it is now, and answers.
        """
        batch = GuardedBatch(self._trusted(), asks)
        if begun is not None:
            batch.begin(begun[0])
            self._give_back(batch.take(begun[1]))
        while batch.begin():
            self._give_back(batch.take(self._exchange(lambda c: batch.request(c.mark), batch.count, batch.read, None)))
        return batch.answers

    def _give_back(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._give_up(lease)

    def _store(self, fills: Sequence[Fill]) -> list[Outcome]:
        """Store under each lease, all of which have a token, over one connection that may present them."""
        limit = self._dialer.item_size_max
        fitting = [limit is None or item_size(fill) <= limit for fill in fills]

        def build(connection: Connection[Wire]) -> bytes:
            now = partial(self._now, connection)
            return b"".join([store_request(*pair, connection.mark(), now) for pair in zip(fills, fitting, strict=True)])

        epoch = min([fill.lease.token.epoch for fill in fills if fill.lease.token is not None])
        outcomes = self._present(epoch, build, len(fills), meta.read_outcomes, None)
        if outcomes is None and len(fills) > 1:  # none is older than all of them, but for some there may be one
            return [self._store([fill])[0] for fill in fills]
        if outcomes is None:
            return [Refused("every connection from before the lease is gone, the server may have restarted")]
        for fill, outcome in zip(fills, outcomes, strict=True):
            if isinstance(outcome, meta.NoRoom):
                self._give_up(fill.lease)
        too_large = Refused(f"larger than the server's item_size_max of {limit} bytes")
        return [outcome if fits else too_large for outcome, fits in zip(outcomes, fitting, strict=True)]

    def _give_up(self, lease: Lease) -> None:
        with contextlib.suppress(NodeError):  # then it runs out by itself
            self.release(lease)

    def _invalidate(self, keys: Sequence[bytes], stale_for: float, guard_key: bytes | None) -> bytes | None:
        """Invalidate; with a guard key return the record as it stands after that."""
        once = dict.fromkeys(keys)
        if not once and guard_key is None:
            return None
        if stale_for < 1:
            return self._delete(once, guard_key)
        *parts, last = [*chunks(list(once), size_of_key)] or [[]]
        for part in parts:
            self._leave_stale(part, stale_for, None)
        return self._leave_stale(last, stale_for, guard_key)

    def _leave_stale(self, keys: Sequence[bytes], stale_for: float, guard_key: bytes | None) -> bytes | None:
        for _ in range(meta.LOOKS):
            all_marked, record = self._mark_stale(keys, stale_for, guard_key)
            if all_marked:
                return record
        return self._delete(keys, guard_key)

    def _delete(self, keys: Iterable[bytes], guard_key: bytes | None) -> bytes | None:
        *requests, last = delete_requests(keys, DELETIONS) or [b""]
        for request in requests:
            self._deleted(request, None)
        return self._deleted(last, guard_key)

    def _deleted(self, request: bytes, guard_key: bytes | None) -> bytes | None:
        def read(replies: list[Reply], epoch: int, born: int, context: None) -> bytes | None:
            deleted, record = meta.split_record(replies, guard_key)
            meta.read_acknowledgement(deleted, epoch, born, None)
            return record

        request = meta.then_record(request + meta.NOOP, guard_key)
        return self._exchange(lambda c: request, QUIET, read, None)

    def _mark_stale(
        self, keys: Sequence[bytes], stale_for: float, guard_key: bytes | None
    ) -> tuple[bool, bytes | None]:
        """Mark what has not changed since it was looked at; tell whether that was everything, and the record."""
        windows = self._exchange(lambda c: meta.look(keys), len(keys), meta.read_windows, stale_for)
        seen = list(zip(keys, windows, strict=True))

        def build(connection: Connection[Wire]) -> bytes:
            marks = meta.mark_stale_quietly(seen, partial(self._now, connection), connection.mark)
            return meta.then_record(marks, guard_key)

        def read(replies: list[Reply], epoch: int, born: int, context: None) -> tuple[bool, bytes | None]:
            marked, record = meta.split_record(replies, guard_key)
            return meta.read_marked(marked, epoch, born, None), record

        return self._exchange(build, QUIET, read, None)


def _read_rest(
    keys: Sequence[bytes], connection: Connection[Wire], found: Any, epoch: int, known: Known | None
) -> list[Any]:
    """Return the values of plain hits as they are, and what the other replies mean. Raises NodeError.

    Of guarded requests the record comes first.
    """
    if isinstance(found, NodeError):
        raise found
    record: list[Any] = []
    if known is not None:
        first, *found = found
        record = [known.raw if first is None else meta.record([first], epoch, connection.epoch, None)]
    generation = known.generation if known is not None else 0
    return record + [
        one if type(one) is bytes else meta.read_answers([one], epoch, connection.epoch, [key], generation)[0]
        for key, one in zip(keys, found, strict=True)
    ]


def _record(client: Client, guard_key: bytes) -> bytes | None:
    """Return the guard record, over the connection of what is asked next."""
    reply, _ = client.sock.ask(meta.read_record(guard_key), lambda data: _accel.parse_reply(data, 0))
    return meta.record([reply], 0, 0, None)


def only(answers: Sequence[Answer | NodeError]) -> Answer:
    """Return the one answer there is. Raises it when it is a NodeError."""
    [answer] = answers
    if isinstance(answer, NodeError):
        raise answer
    return answer


def size_of_ask(ask: Ask) -> int:
    """Return the bytes that its request has, at most."""
    return len(ask.key) + meta.REQUEST_OVERHEAD


def size_of_key(key: bytes) -> int:
    """Return the bytes that a request to invalidate has, at most."""
    return len(key) + meta.REQUEST_OVERHEAD


def batch_request(asks: Sequence[Ask]) -> Build:
    """Return what asks for all of them over a connection."""
    return lambda c: b"".join([meta.lease_get(ask.key, ask.lease_for, ask.refresh_ahead, c.mark()) for ask in asks])


def item_size(fill: Fill) -> int:
    """Return the bytes that the item has, which a server compares with its item_size_max."""
    key = meta.on_the_wire(fill.lease.key, fill.lease.token) if fill.lease.token else fill.lease.key
    return len(key) + len(fill.body) + meta.ITEM_OVERHEAD


def store_request(fill: Fill, fits: bool, mark: bytes, now: Callable[[], int]) -> bytes:
    """Return the lease-set of a fill, or of the mark that stands for a value which does not fit; `now` for dates."""
    token, ttl = fill.lease.token or Token(0, NO_CONNECTION, NO_CONNECTION), meta.exptime(fill.ttl, now)
    flags, body = (fill.flags, fill.body) if fits else (UNCACHEABLE, b"")
    return meta.lease_set(meta.on_the_wire(fill.lease.key, token), token.cas, flags, body, ttl, mark)


def chunks(parts: Sequence[T], size: Callable[[Any], int] = len) -> Iterable[list[T]]:
    """Split into lists whose requests, of `size` bytes each, come to at most CHUNK bytes, one request at least."""
    chunk: list[T] = []
    total = 0
    for part in parts:
        if total + size(part) > CHUNK and chunk:
            yield chunk
            chunk, total = [], 0
        chunk.append(part)
        total += size(part)
    if chunk:
        yield chunk
