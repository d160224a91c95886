"""What every store does alike: the lease, from its first token to every way of losing it."""

import time
from typing import Any

from leasecache.lab import wait_until
from leasecache.lease import Ask, Fill, Hit, Lease, Refused, Stale, Stored, Wait
from leasecache.stores.base import Store

FLAGS = 0x10000001
AHEAD = 2**31 - 1


def won(store: Store, key: bytes) -> Lease:
    answer = store.lease_get(key, 10)
    assert isinstance(answer, Lease)
    return answer


def filled(store: Store, key: bytes, value: bytes = b"value", ttl: float = 60) -> None:
    assert store.lease_set(won(store, key), FLAGS, value, ttl) == Stored()


def test_first_reader_wins_and_the_second_waits(store: Store, key: bytes) -> None:
    """A missing key gives one lease; the next reader is told to wait for that very token."""
    lease = won(store, key)
    answer = store.lease_get(key, 10)
    assert lease.value is None
    assert isinstance(answer, Wait)
    assert answer.token is not None
    assert lease.token is not None
    assert answer.token.cas == lease.token.cas


def test_stored_value_is_a_hit_with_its_flags(store: Store, key: bytes) -> None:
    """What was stored under a lease comes back with the same bytes and flags, and the time it has left."""
    filled(store, key, b"a\r\n\0b")
    answer = store.lease_get(key, 10)
    assert isinstance(answer, Hit)
    assert (answer.value, answer.flags) == (b"a\r\n\0b", FLAGS)
    assert answer.expires_in is not None
    assert 58 <= answer.expires_in <= 60


def test_empty_value_is_a_hit(store: Store, key: bytes) -> None:
    """An empty body with flags is a value and not the stub of a lease."""
    filled(store, key, b"")
    assert isinstance(store.lease_get(key, 10), Hit)


def test_value_read_before_an_invalidation_is_refused(store: Store, key: bytes) -> None:
    """A lease-set whose token an invalidation voided stores nothing, and the key is free for a new lease."""
    lease = won(store, key)
    store.invalidate([key])
    assert isinstance(store.lease_set(lease, FLAGS, b"old", 60), Refused)
    filled(store, key, b"new")
    assert isinstance(store.lease_set(lease, FLAGS, b"old", 60), Refused)
    answer = store.lease_get(key, 10)
    assert isinstance(answer, Hit)
    assert answer.value == b"new"


def test_soft_invalidation_also_voids_the_lease(store: Store, key: bytes) -> None:
    """A soft invalidation while a value is being loaded refuses that load, with or without an older value."""
    lease = won(store, key)
    store.invalidate([key], 30)
    assert isinstance(store.lease_set(lease, FLAGS, b"old", 60), Refused)
    assert isinstance(store.lease_get(key, 10), Lease)


def test_a_token_stores_once(store: Store, key: bytes) -> None:
    """A second lease-set under the same token is refused."""
    lease = won(store, key)
    assert store.lease_set(lease, FLAGS, b"first", 60) == Stored()
    assert isinstance(store.lease_set(lease, FLAGS, b"second", 60), Refused)


def test_hard_invalidation_drops_the_value(store: Store, key: bytes) -> None:
    """After a hard invalidation the next reader wins a lease without a value in hand."""
    filled(store, key)
    store.invalidate([key])
    assert won(store, key).value is None


def test_soft_invalidation_gives_the_stale_value_to_all_and_the_lease_to_one(store: Store, key: bytes) -> None:
    """One reader wins with the stale value in hand, the others get it as stale under that token."""
    filled(store, key)
    store.invalidate([key], 30)
    lease = won(store, key)
    loser = store.lease_get(key, 10)
    assert (lease.value, lease.fresh) == (b"value", False)
    assert isinstance(loser, Stale)
    assert loser.value == b"value"
    assert loser.expires_in is not None
    assert loser.expires_in <= 30
    assert store.lease_set(lease, FLAGS, b"newer", 60) == Stored()
    assert isinstance(store.lease_get(key, 10), Hit)


def test_second_soft_invalidation_does_not_stretch_the_window(store: Store, key: bytes) -> None:
    """The window of the first soft invalidation stays, though the second asks for a longer one."""
    filled(store, key)
    store.invalidate([key], 20)
    store.invalidate([key], 50)
    lease = won(store, key)
    assert lease.expires_in is not None
    assert lease.expires_in <= 20


def test_many_soft_invalidations_do_not_eat_up_the_window(store: Store, key: bytes) -> None:
    """Each soft invalidation leaves the value what it has: the window ends by the clock alone."""
    filled(store, key)
    for _ in range(10):
        store.invalidate([key], 40)
    lease = won(store, key)
    assert lease.expires_in is not None
    assert lease.expires_in > 30  # a second of each would be ten


def test_key_that_is_invalidated_twice_in_one_call_stays_as_stale(store: Store, key: bytes) -> None:
    """A batch may name a key several times, as a transaction that changes a row twice does."""
    filled(store, key)
    store.invalidate([key, key], 30)
    assert won(store, key).value == b"value"


def test_soft_invalidation_never_lengthens_a_value(store: Store, key: bytes) -> None:
    """A value with less life left than stale_for keeps what it has."""
    filled(store, key, ttl=20)
    store.invalidate([key], 50)
    lease = won(store, key)
    assert lease.expires_in is not None
    assert lease.expires_in <= 20


def test_soft_invalidation_voids_the_refresh_of_a_stale_value(store: Store, key: bytes) -> None:
    """A reader that refreshes a stale value loses to an invalidation that comes meanwhile."""
    filled(store, key)
    store.invalidate([key], 30)
    lease = won(store, key)
    store.invalidate([key], 30)
    assert isinstance(store.lease_set(lease, FLAGS, b"old", 60), Refused)


def test_released_stub_can_be_won_at_once(store: Store, key: bytes) -> None:
    """A loader that gives up lets the next reader win instead of waiting for lease_for."""
    lease = won(store, key)
    store.release(lease)
    assert won(store, key).token != lease.token
    assert isinstance(store.lease_set(lease, FLAGS, b"late", 60), Refused)


def test_released_stale_value_can_be_won_at_once_and_keeps_its_window(store: Store, key: bytes) -> None:
    """Giving back the refresh of a stale value arms the win again without touching the window."""
    filled(store, key)
    store.invalidate([key], 30)
    store.release(won(store, key))
    again = won(store, key)
    assert again.value == b"value"
    assert again.expires_in is not None
    assert 25 <= again.expires_in <= 30


def test_release_with_a_voided_token_does_nothing(store: Store, key: bytes) -> None:
    """Releasing a lease that was taken over leaves the successor's lease alone."""
    lease = won(store, key)
    store.invalidate([key])
    successor = won(store, key)
    store.release(lease)
    assert store.lease_set(successor, FLAGS, b"value", 60) == Stored()


def test_early_refresh_is_won_once_and_serves_the_others(store: Store, key: bytes) -> None:
    """Near its expiry one reader wins a refresh with the fresh value in hand; the others still hit."""
    filled(store, key)
    lease = store.lease_get(key, 10, AHEAD)
    other = store.lease_get(key, 10, AHEAD)
    assert isinstance(lease, Lease)
    assert (lease.value, lease.fresh) == (b"value", True)
    assert isinstance(other, Hit)
    assert store.lease_set(lease, FLAGS, b"newer", 60) == Stored()


def test_reader_gives_a_plain_hit_as_bytes_and_everything_else_as_lease_get_does(store: Store, key: bytes) -> None:
    """The short way of a decorated call answers as lease_get does in every state of an item."""
    read = store.reader(10, 0, FLAGS)
    lease = read(key)
    assert isinstance(lease, Lease)
    waiting = read(key)
    assert isinstance(waiting, Wait)
    assert waiting.token is not None
    assert lease.token is not None
    assert waiting.token.cas == lease.token.cas
    assert store.lease_set(lease, FLAGS, b"", 60) == Stored()
    assert read(key) == b""
    other = store.reader(10, 0, FLAGS + 1)(key)
    assert isinstance(other, Hit)
    assert (other.value, other.flags) == (b"", FLAGS)
    early = store.reader(10, AHEAD, FLAGS)
    refreshing = early(key)
    assert isinstance(refreshing, Lease)
    assert refreshing.fresh
    served = early(key)  # fresh, though somebody refreshes it; a store may take it for a plain hit or not
    assert (served.value if isinstance(served, Hit) else served) == b""
    store.invalidate([key], 30)
    stale = read(key)
    assert isinstance(stale, Lease)
    assert (stale.value, stale.fresh) == (b"", False)
    assert isinstance(read(key), Stale)
    assert store.lease_set(stale, FLAGS, b"new", 60) == Stored()
    assert read(key) == b"new"
    store.invalidate([key])
    assert isinstance(read(key), Lease)


def test_stub_of_a_dead_holder_expires(store: Store, key: bytes) -> None:
    """When a holder never comes back, the lease is won again after lease_for."""
    began = time.monotonic()
    assert isinstance(store.lease_get(key, 2), Lease)
    waits = isinstance(store.lease_get(key, 1), Wait)
    assert waits or time.monotonic() - began > 1  # memcached counts whole seconds
    assert wait_until(lambda: isinstance(store.lease_get(key, 1), Lease), 60, "the lease to run out")


def test_batch_answers_in_the_order_of_its_keys(store: Store, key: bytes) -> None:
    """A batch gives each key its own answer: hits, leases and waits mixed."""
    keys = [b"%b:%d" % (key, i) for i in range(3000)]
    for i in (0, 7, 2999):
        filled(store, keys[i], b"%d" % i)
    waited = won(store, keys[1])
    answers = dict(zip(keys, store.lease_get_many([Ask(k, 10) for k in keys]), strict=True))
    kinds: dict[bytes, Any] = {k: type(a) for k, a in answers.items()}
    assert [kinds[keys[i]] for i in (0, 1, 7, 2999)] == [Hit, Wait, Hit, Hit]
    assert sum(kind is Lease for kind in kinds.values()) == 2996
    assert store.lease_set(waited, FLAGS, b"x", 60) == Stored()


def test_batch_invalidation_reaches_every_key(store: Store, key: bytes) -> None:
    """Thousands of keys in one call, present and absent, hard and soft."""
    keys = [b"%b:%d" % (key, i) for i in range(5000)]
    for k in keys[::50]:
        filled(store, k)
    store.invalidate(keys[:2500])
    store.invalidate(keys[2500:], 30)
    assert not any(isinstance(a, Hit) for a in store.lease_get_many([Ask(k, 10) for k in keys]))


def test_look_takes_no_lease(store: Store, key: bytes) -> None:
    """Looking at a stub, a value or a stale value leaves the next reader's answer as it was."""
    assert store.look(key) is None
    lease = won(store, key)
    assert store.look(key) is None
    assert store.lease_set(lease, FLAGS, b"value", 60) == Stored()
    seen = store.look(key)
    assert seen is not None
    assert (seen.value, seen.flags) == (b"value", FLAGS)
    store.invalidate([key], 30)
    assert store.look(key) is not None
    assert won(store, key).value == b"value"


def test_lease_without_token_cannot_store(store: Store, key: bytes) -> None:
    """A lease that the server could not back is refused without harm."""
    assert isinstance(store.lease_set(Lease(key, None), FLAGS, b"value", 60), Refused)
    assert store.look(key) is None


def test_long_ttl_is_not_taken_for_a_date(store: Store, key: bytes) -> None:
    """A ttl beyond 30 days, which memcached wants as a date by its own clock, lives as long as asked."""
    filled(store, key, ttl=40 * 86400)
    seen = store.look(key)
    assert seen is not None
    assert seen.expires_in is not None
    assert 39.9 * 86400 < seen.expires_in <= 40 * 86400 + 1


def test_batch_of_fills_stores_under_each_lease(store: Store, key: bytes) -> None:
    """Each lease-set of a batch has its own outcome: stored, or refused because its token was voided."""
    keys = [b"%b:%d" % (key, i) for i in range(300)]
    leases = [won(store, k) for k in keys]
    store.invalidate([keys[7]])
    outcomes = store.lease_set_many([Fill(lease, FLAGS, lease.key, 60) for lease in leases])
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Refused)] == [7]
    answers = store.lease_get_many([Ask(k, 10) for k in keys])
    assert [a.value for a in answers if isinstance(a, Hit)] == keys[:7] + keys[8:]


def test_batch_reader_gives_plain_hits_as_bytes(store: Store, key: bytes) -> None:
    """The short way of a batch gives the value of a plain hit and the answer of everything else, in order."""
    keys = [b"%b:%d" % (key, i) for i in range(5)]
    for k in (keys[0], keys[3], keys[4]):
        filled(store, k, k)
    waiting = won(store, keys[1])
    store.invalidate([keys[4]], 30)
    first, second, third, fourth, fifth = store.batch_reader(10, 0, FLAGS)(keys)
    assert (first, fourth) == (keys[0], keys[3])
    assert isinstance(second, Wait)
    assert isinstance(third, Lease)
    assert isinstance(fifth, Lease)
    assert fifth.value == keys[4]
    [other] = store.batch_reader(10, 0, FLAGS + 1)([keys[0]])
    assert isinstance(other, Hit)
    assert store.lease_set(waiting, FLAGS, b"value", 60) == Stored()


def test_stolen_lease_cannot_store(store: Store, key: bytes) -> None:
    """A thief gets the lease on an empty or a stale item, its holder can no longer store; the window stays."""
    holder = won(store, key)
    waiting = store.lease_get(key, 10)
    assert isinstance(waiting, Wait)
    assert waiting.token is not None
    thief = store.steal(key, waiting.token, 10)
    assert isinstance(thief, Lease)
    assert isinstance(store.lease_set(holder, FLAGS, b"late", 60), Refused)
    assert store.lease_set(thief, FLAGS, b"value", 60) == Stored()
    store.invalidate([key], 30)
    holder = won(store, key)
    loser = store.lease_get(key, 10)
    assert isinstance(loser, Stale)
    assert loser.token is not None
    thief = store.steal(key, loser.token, 10)
    assert isinstance(thief, Lease)
    assert (thief.value, thief.fresh) == (b"value", False)
    assert thief.expires_in is not None
    assert 25 <= thief.expires_in <= 30
    assert isinstance(store.lease_set(holder, FLAGS, b"late", 60), Refused)


def test_one_theft_per_token(store: Store, key: bytes) -> None:
    """Of several who steal the same token one wins; the others wait for the thief, whose lease is untouched."""
    won(store, key)
    waiting = store.lease_get(key, 10)
    assert isinstance(waiting, Wait)
    assert waiting.token is not None
    thief, *others = [store.steal(key, waiting.token, 10) for _ in range(4)]
    assert isinstance(thief, Lease)
    assert all(isinstance(other, Wait) for other in others)
    assert store.lease_set(thief, FLAGS, b"value", 60) == Stored()


def test_theft_of_a_key_that_was_stored_meanwhile_is_a_hit(store: Store, key: bytes) -> None:
    """A thief that comes too late gets the value and takes nothing from it."""
    holder = won(store, key)
    assert holder.token is not None
    assert store.lease_set(holder, FLAGS, b"value", 60) == Stored()
    assert isinstance(store.steal(key, holder.token, 10), Hit)
    assert isinstance(store.lease_get(key, 10), Hit)
