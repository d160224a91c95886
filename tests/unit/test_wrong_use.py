"""What an application gets that uses the cache wrongly: one line that names the fault and the fix."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from leasecache import AsyncCache, Cache, ConfigError, DefinitionError
from tests.facade import BlockingCache

KEY = b"key"


@pytest.fixture(params=[Cache.from_url, BlockingCache])
def cache(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cache in memory, synchronous and asyncio."""
    with request.param("memory://") as opened:
        yield opened


@pytest.mark.parametrize("ttl", [0, -1, 0.5, math.nan, math.inf, "5", None, True])
def test_low_level_ttl_is_at_least_a_second(cache: Any, ttl: Any) -> None:
    """A number that would be stored as another one is refused; guard: `check_fill`."""
    lease = cache.lease_get(KEY)
    with pytest.raises(ConfigError, match=r"^ttl=.* must be at least 1 s$"):
        cache.lease_set(lease, b"value", ttl)


@pytest.mark.parametrize("stale_for", [-1, math.nan, math.inf, "5", None])
def test_low_level_stale_for_is_a_number_of_seconds(cache: Any, stale_for: Any) -> None:
    """What would be dropped, or fail on one kind of server alone, is refused; guard: `check_invalidation`."""
    with pytest.raises(ConfigError, match=r"^stale_for=.* must be 0 or more s$"):
        cache.invalidate(KEY, stale_for=stale_for)


@pytest.mark.parametrize("lease_for", [0, math.nan, "5", None, 10**9])
def test_low_level_lease_for_is_in_range(cache: Any, lease_for: Any) -> None:
    """Guard: `check_lease`."""
    with pytest.raises(ConfigError, match=r"^lease_for=.* must be from 1 s to 2592000 s$"):
        cache.lease_get(KEY, lease_for=lease_for)


def test_low_level_lease_is_what_lease_get_has_returned(cache: Any) -> None:
    """A Wait in the place of a lease is refused; guard: `check_fill`."""
    cache.lease_get(KEY)
    with pytest.raises(TypeError, match=r"^a lease is what lease_get has returned, not Wait$"):
        cache.lease_set(cache.lease_get(KEY), b"value", 60)


def test_url_that_is_not_set() -> None:
    """An environment variable without a value is the usual reason; guard: the type check in `parse_url`."""
    with pytest.raises(ConfigError, match=r"^a cache URL is text such as 'memcached://host:port', not None$"):
        Cache.from_url(None)  # type: ignore[arg-type]


def test_policy_that_is_none(cache: Any) -> None:
    """A dict of the fields is no Policy; guard: the type check in `chosen`."""
    with pytest.raises(DefinitionError, match=r"^policy must be a Policy\(ttl=…\), not \{'ttl': 5\}$"):
        cache.cached("item:{n}", policy={"ttl": 5})


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (5, {}, r"^a template is a str such as 'media:\{media_id\}', not 5$"),
        ("item:{n}", {"ignore": ("n",)}, r"parameter 'n' is in the key; take it out of ignore$"),
        ("item:{n}", {"version": True}, r"^version=True must be an int$"),
        ("item:{n}", {"compress_over": 1.5}, r"^compress_over=1\.5 must be 0 or more bytes$"),
    ],
)
def test_declarations_that_mean_nothing(cache: Any, template: Any, options: dict[str, Any], message: str) -> None:
    """What could only be a slip is refused when the decorator runs."""
    with pytest.raises(DefinitionError, match=message):

        @cache.cached(template, ttl=60, **options)
        def item(n: int) -> int:
            return n


def test_low_level_release_of_what_is_no_lease(cache: Any) -> None:
    """What lease_get has answered may be a Wait; guard: `check_given`."""
    cache.lease_get(KEY)
    with pytest.raises(TypeError, match=r"^a lease is what lease_get has returned, not Wait$"):
        cache.release(cache.lease_get(KEY))


@pytest.mark.parametrize("call", ["__call__", "lookup", "key"])
def test_arguments_that_do_not_fit_name_the_function(cache: Any, call: str) -> None:
    """A call that the function itself would refuse says whose call it was; guard: `KeySignature._bind`."""

    @cache.cached("item:{n}", ttl=60)
    def item(n: int) -> int:
        return n

    with pytest.raises(TypeError, match=r"\.item: missing a required argument: 'n'$"):
        getattr(item, call)()
    with pytest.raises(TypeError, match=r"\.item: too many positional arguments$"):
        getattr(item, call)(1, 2)


def test_batch_arguments_that_do_not_fit_name_the_function(cache: Any) -> None:
    """The same of `cached_many`; guard: `BatchSignature.split`."""

    @cache.cached_many("user:{n}", ttl=60)
    def users(n: list[int]) -> dict[int, int]:
        return {each: each for each in n}

    with pytest.raises(TypeError, match=r"\.users: missing a required argument: 'n'$"):
        users()
    with pytest.raises(TypeError, match=r"\.users: too many positional arguments$"):
        users.refresh([1], [2])


def test_get_many_refuses_alike_whether_it_hits_or_not(cache: Any) -> None:
    """A wrong call does not wait for a miss to be found out; guard: `KeySignature._check_others`."""

    @cache.cached("item:{n}", ttl=60)
    def item(n: int) -> int:
        return n

    @cache.cached("row:{n}", ttl=60, ignore=("session",))
    def row(n: int, session: str) -> int:
        return n

    assert [item(1), row(1, "s")] == [1, 1]
    with pytest.raises(TypeError, match=r"\.item: get_many got an unexpected keyword argument 'sesion'$"):
        item.get_many([1], sesion=1)
    with pytest.raises(TypeError, match=r"\.row: get_many is missing 1 required positional argument: 'session'$"):
        row.get_many([1])


class Shelf:
    """Has a cached method."""

    cache = Cache.from_url("memory://")

    @cache.cached("shelf:{n}", ttl=60)
    def get(self, n: int) -> int:
        """Return n."""
        return n


def test_get_many_of_a_method_wants_an_instance() -> None:
    """On the class there is no self to load with, be the values cached or not; guard: `_Surface.get_many`."""
    assert Shelf().get.get_many([1]) == {1: 1}
    with pytest.raises(TypeError, match=r"\.Shelf\.get: get_many wants an instance, such as Shelf\(…\)\.get\.get_many"):
        Shelf.get.get_many([1])


@pytest.mark.parametrize("scheme", ["memcached", "redis"])
def test_several_unix_sockets_are_no_path(scheme: str) -> None:
    """A list of sockets would be one file that is never there; a comma of a path is percent-encoded."""
    with pytest.raises(ConfigError, match=r"takes one Unix socket; write a comma in its path as %2C$"):
        Cache.from_url(f"{scheme}:///run/a.sock,/run/b.sock")
    Cache.from_url(f"{scheme}:///run/a%2Cb.sock")


def test_background_that_is_no_executor() -> None:
    """It would be found out by a warning in the log at the first refresh; guard: the check in `Cache`."""
    with pytest.raises(ConfigError, match=r"^background=5 must be an executor, with submit\(\), or None$"):
        Cache(background=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Cache, AsyncCache])
def test_in_transaction_that_cannot_be_asked(kind: Any) -> None:
    """A value in place of a function would fail at the first call; guard: the check in `Registry`."""
    with pytest.raises(ConfigError, match=r"^in_transaction=True must be a function that tells, or None$"):
        kind.from_url("memory://", in_transaction=True)
