"""Functions that load many values at once: one lease-get per node, one load of what nobody has, one lease-set."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leasecache import Cache, DefinitionError, row
from leasecache.lab import MemcachedServer, wait_until
from leasecache.lease import Lease
from tests.facade import BlockingCache

KINDS = ["memory", "memcached", "async-memory", "async-memcached"]


@pytest.fixture(params=KINDS)
def cache(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each cache, in memory and on a memcached of the test's own, synchronous and asyncio."""
    url = request.getfixturevalue("memcached").url if request.param.endswith("memcached") else "memory://"
    with (BlockingCache if request.param.startswith("async") else Cache.from_url)(url) as opened:
        yield opened


class Users:
    """A table of users whose loads are counted and may be held up or fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.present = {n: f"user {n}" for n in range(1, 100)}
        self.began, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()
        self.fault: Exception | None = None

    def load(self, ids: Sequence[int]) -> Mapping[int, str]:
        self.batches.append(list(ids))
        self.began.set()
        assert self.may_end.wait(60)
        if self.fault is not None:
            raise self.fault
        return {n: self.present[n] for n in ids if n in self.present}


def declare(cache: Any, users: Users, **policy: Any) -> Any:
    @cache.cached_many("user:{user_id}", **{"ttl": 60, "lease_for": 60, "wait_for": 60, **policy})
    def get_users(user_ids: Sequence[int]) -> Mapping[int, str]:
        return users.load(user_ids)

    return get_users


def test_one_load_for_what_nobody_has(cache: Any) -> None:
    """The loader gets a list of the missing ids, duplicates once; the answer is in asked order."""
    users = Users()
    get_users = declare(cache, users)
    assert list(get_users([3, 1, 3, 2]).items()) == [(3, "user 3"), (1, "user 1"), (2, "user 2")]
    assert users.batches == [[3, 1, 2]]
    assert get_users([1, 2, 3, 4]) == {1: "user 1", 2: "user 2", 3: "user 3", 4: "user 4"}
    assert users.batches == [[3, 1, 2], [4]]
    assert get_users([]) == {}
    assert get_users(n for n in (1, 2)) == {1: "user 1", 2: "user 2"}


def test_absent_ids_are_cached_as_absent(cache: Any) -> None:
    """An id without a row is left out of the answer and not asked for again."""
    users = Users()
    get_users = declare(cache, users)
    assert get_users([1, 1000]) == {1: "user 1"}
    assert get_users([1000, 1]) == {1: "user 1"}
    assert users.batches == [[1, 1000]]
    assert get_users.lookup(1000).value is None
    assert get_users.lookup(1000).state == "fresh"


def test_absent_ids_have_their_own_ttl(cache: Any) -> None:
    """negative_ttl is the ttl of what is absent."""
    get_users = declare(cache, Users(), ttl=500, negative_ttl=5, jitter=0)
    get_users([1, 1000])
    assert get_users.peek(1).expires_in > 400
    assert get_users.peek(1000).expires_in <= 5


def test_methods_take_one_id_and_invalidate_many(cache: Any) -> None:
    """lookup, peek and key take one id; invalidate takes ids; refresh a batch; there is no get_many."""
    users = Users()
    get_users = declare(cache, users)
    assert get_users.peek(1) is None
    assert get_users.lookup(1).state == "loaded"
    assert get_users.peek(1).value == "user 1"
    assert get_users.key(1) == b"user:1"
    users.present[1] = "renamed"
    assert get_users.refresh([1, 2]) == {1: "renamed", 2: "user 2"}
    assert users.batches[-1] == [1, 2]
    users.present[2] = "renamed too"
    get_users.invalidate(1, 2)
    assert get_users([1, 2]) == {1: "renamed", 2: "renamed too"}
    assert not hasattr(getattr(get_users, "_function", get_users), "get_many")


def test_wrong_element_names_function_and_field(cache: Any) -> None:
    """An id of another type is a TypeError before anything is asked."""
    users = Users()
    get_users = declare(cache, users)
    with pytest.raises(TypeError, match=r"get_users.*'user_id' must be int, not str"):
        get_users([1, "2"])
    with pytest.raises(TypeError, match=r"takes one user_id, not 2"):
        get_users.key(1, 2)
    assert users.batches == []


def test_failed_load_reaches_the_caller_and_frees_every_key(cache: Any) -> None:
    """The loader's error is the caller's, and all leases of the batch are given back."""
    users = Users()
    get_users = declare(cache, users)
    users.fault = LookupError("database down")
    with pytest.raises(LookupError, match="database down"):
        get_users([1, 2, 3])
    assert all(isinstance(cache.lease_get(get_users.key(n)), Lease) for n in (1, 2, 3))
    assert getattr(cache, "cache", cache).stats().functions[0].failed == 1


def test_loader_that_returns_no_mapping_is_told_so(cache: Any) -> None:
    """A list in place of a mapping is a TypeError that names the function, and frees the keys."""

    @cache.cached_many("user:{user_id}", ttl=60)
    def get_users(user_ids: Sequence[int]) -> Mapping[int, str]:
        return ["user"]  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"get_users must return a mapping, not list"):
        get_users([1])
    assert isinstance(cache.lease_get(get_users.key(1)), Lease)


def test_overlapping_batches_load_each_key_once(cache: Any) -> None:
    """Two callers with overlapping batches: each loads what it has won, and waits for the rest together."""
    users = Users()
    users.may_end.clear()
    get_users = declare(cache, users)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get_users, [1, 2, 3, 4])
        assert users.began.wait(60)
        second = pool.submit(get_users, [3, 4, 5, 6])
        wait_until(lambda: len(users.batches) == 2, 60, "the second batch to load its own")
        users.may_end.set()
        assert first.result() == {n: f"user {n}" for n in (1, 2, 3, 4)}
        assert second.result() == {n: f"user {n}" for n in (3, 4, 5, 6)}
    assert users.batches == [[1, 2, 3, 4], [5, 6]]


def test_batches_that_lost_everything_wait_once(cache: Any) -> None:
    """Fifty keys lost to others take as long as one: they are waited for together."""
    users = Users()
    users.may_end.clear()
    get_users = declare(cache, users)
    ids = list(range(1, 51))
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(get_users, ids)
        assert users.began.wait(60)
        others = [pool.submit(get_users, ids) for _ in range(5)]
        users.may_end.set()
        began = time.monotonic()
        assert all(other.result() == first.result() for other in others)
        assert time.monotonic() - began < 20
    assert users.batches == [ids]


def test_stale_values_are_served_while_one_load_refreshes_them_all(cache: Any) -> None:
    """After an invalidation the batch is served stale, and one call in the background loads every key of it."""
    users = Users()
    get_users = declare(cache, users, stale_for=30)
    get_users([1, 2, 3])
    users.present.update({n: f"new {n}" for n in (1, 2, 3)})
    get_users.invalidate(1, 2, 3)
    assert get_users([1, 2, 3]) == {n: f"user {n}" for n in (1, 2, 3)}
    wait_until(lambda: get_users.lookup(1).value == "new 1", 60, "the refresh")
    assert get_users([1, 2, 3]) == {n: f"new {n}" for n in (1, 2, 3)}
    assert users.batches == [[1, 2, 3], [1, 2, 3]]


def test_ignored_parameters_go_to_every_load(cache: Any) -> None:
    """Parameters after the batch are not part of the key; lookup takes them by name."""
    seen: list[tuple[list[int], str]] = []

    @cache.cached_many("user:{user_id}", ttl=60, ignore=("session",))
    def get_users(user_ids: Sequence[int], session: str) -> Mapping[int, int]:
        seen.append((list(user_ids), session))
        return {n: n for n in user_ids}

    assert get_users([1], "a") == {1: 1}
    assert get_users([1, 2], session="b") == {1: 1, 2: 2}
    assert get_users.lookup(3, session="c").value == 3
    assert get_users.refresh([1], "d") == {1: 1}
    assert seen == [([1], "a"), ([2], "b"), ([3], "c"), ([1], "d")]


def test_bypass_loads_the_whole_batch_and_stores_nothing(cache: Any) -> None:
    """In a bypass the loader gets the batch as a list, and what is absent is left out all the same."""
    users = Users()
    get_users = declare(cache, users)
    with cache.bypass():
        assert get_users([1, 1, 1000]) == {1: "user 1"}
    assert users.batches == [[1, 1000]]
    assert get_users.peek(1) is None


def test_cache_that_is_down_costs_one_load_of_the_batch() -> None:
    """Without a node the batch is loaded in one call, uncached."""
    users = Users()
    with Cache.from_url("memcached://127.0.0.1:1") as cache:
        assert declare(cache, users)([1, 2, 3]) == {n: f"user {n}" for n in (1, 2, 3)}
    assert users.batches == [[1, 2, 3]]


def test_methods_of_classes() -> None:
    """cached_many on methods: bound, unbound, on classes; the batch is the first parameter after self."""
    with Cache.from_url("memory://") as cache:

        class Repository:
            def __init__(self) -> None:
                self.loads = 0

            @cache.cached_many("a:{n}", ttl=60)
            def get(self, ids: list[int]) -> dict[int, int]:
                self.loads += 1
                return {n: n for n in ids}

            @cache.cached_many("b:{n}", ttl=60)
            @staticmethod
            def double(ids: tuple[int, ...]) -> dict[int, int]:
                return {n: 2 * n for n in ids}

        repository = Repository()
        assert repository.get([1, 2]) == {1: 1, 2: 2}
        assert Repository.get(repository, [2, 3]) == {2: 2, 3: 3}
        assert repository.loads == 2
        assert repository.get.lookup(1).state == "fresh"
        assert Repository.get.lookup(repository, 9).state == "loaded"
        assert repository.get.key(1) == b"a:1"
        assert Repository.double([4]) == {4: 8}


def _no_batch(n: int) -> dict[int, int]:
    return {}


def _nothing() -> dict[int, str]:
    return {}


def _no_mapping(ids: list[int]) -> list[int]:
    return []


def _more(ids: list[int], locale: str) -> dict[int, str]:
    return {}


def _floats(ids: list[float]) -> dict[float, str]:
    return {}


def _two_types(ids: Sequence) -> dict[int, str]:  # type: ignore[type-arg]
    return {}


@pytest.mark.parametrize(
    ("fn", "template", "options", "message"),
    [
        (_no_batch, "x:{n}", {}, r"'n' must be annotated as a batch of keys, for example n: Sequence\[int\]"),
        (_two_types, "x:{n}", {}, r"'ids' must be annotated as a batch of keys"),
        (_no_mapping, "x:{n}", {}, r"_no_mapping must return a mapping, for example -> Mapping\[int, User\]"),
        (_more, "x:{n}", {}, r"'locale' is not in the key, so callers would share a value; pass ignore=\('locale',\)"),
        (_more, "x:{n}", {"ignore": ("locle",)}, r"has no parameter 'locle' after the batch"),
        (_more, "x:{n}", {"ignore": "locale"}, r"ignore must be a tuple"),
        (_floats, "x:{n}", {}, r"cannot be a key field as float"),
        (_no_mapping, "x:{n}:{m}", {}, r"the template of cached_many has one field"),
        (_no_mapping, "x", {}, r"the template of cached_many has one field"),
        (_nothing, "x:{n}", {}, r"must take the batch first"),
    ],
)
def test_declarations_refused(fn: Any, template: str, options: dict[str, Any], message: str) -> None:
    """What cached_many cannot honour is refused when the decorator runs, with the fix."""
    with Cache.from_url("memory://") as cache, pytest.raises(DefinitionError, match=message):
        cache.cached_many(template, ttl=60, **options)(fn)


def test_rules_are_those_of_the_field() -> None:
    """depends_on binds the one field, for the daemon."""
    cache = Cache.from_url("memory://")

    @cache.cached_many("user:{user_id}", ttl=60, depends_on=row("users", user_id="id"))
    def get_users(user_ids: Sequence[int]) -> Mapping[int, str]:
        return {}

    [rule] = cache.rules.rules
    assert (rule.table, rule.fields, rule.kinds) == ("users", {"user_id": "id"}, {"user_id": "int"})
    assert get_users.original([1]) == {}


def test_large_batches(memcached: MemcachedServer) -> None:
    """Five thousand keys in one call, half of them cached."""
    with Cache.from_url(memcached.url) as cache:
        loads: list[int] = []

        @cache.cached_many("n:{n}", ttl=60)
        def squares(ns: Sequence[int]) -> Mapping[int, int]:
            loads.append(len(ns))
            return {n: n * n for n in ns}

        squares(range(0, 5000, 2))
        assert squares(range(5000)) == {n: n * n for n in range(5000)}
        assert loads == [2500, 2500]
