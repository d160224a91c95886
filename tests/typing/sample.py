"""An application as type checkers see it: never run. A line that ends in "# wrong" must be reported, no other one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import assert_type

from leasecache import Cache, Entry, Policy, row

cache = Cache.from_url("memcached://10.0.0.1?namespace=shop", guard="none")


@dataclass
class Media:
    """A value."""

    id: int
    title: str


@cache.cached("media:{media_id}", ttl=3600, stale_for=60, depends_on=row("media", media_id="id"))
def get_media(media_id: int) -> Media | None:
    return Media(media_id, "sunset")


@cache.cached("page:{slug}:{number}", policy=Policy(ttl=60), ignore=("session",))
def get_page(slug: str, number: int = 1, *, session: object = None) -> list[Media]:
    return []


class Shop:
    """Bound in every way."""

    @cache.cached("price:{item}", ttl=60)
    def price(self, item: int, currency: str = "EUR") -> float:
        return 1.0

    @cache.cached("open:{shop_id}", ttl=60)
    @staticmethod
    def is_open(shop_id: int) -> bool:
        return True

    @cache.cached_many("stock:{item}", ttl=60)
    def stock(self, items: Sequence[int]) -> Mapping[int, float]:
        return {}


@cache.cached_many("user:{user_id}", ttl=600, depends_on=row("users", user_id="id"))
def get_users(user_ids: Sequence[int]) -> Mapping[int, Media]:
    return {}


def functions() -> None:
    assert_type(get_media(1), Media | None)
    assert_type(get_media(media_id=1), Media | None)
    assert_type(get_media.lookup(1), Entry)
    assert_type(get_media.peek(1), Entry | None)
    assert_type(get_media.refresh(1), Media | None)
    assert_type(get_media.key(1), bytes)
    assert_type(get_media.get_many([1, 2]), dict[int, Media | None])
    assert_type(get_media.original(1), Media | None)
    get_media.invalidate(1)
    get_media.invalidate_on_commit(object(), 1)
    assert_type(cache.commit_message(get_media, 1).sql, str)
    assert_type(cache.commit_message(get_users, 1, 2).parameters, tuple[str])
    assert_type(get_page("a"), list[Media])
    assert_type(get_page("a", number=2, session=object()), list[Media])
    assert_type(get_page.get_many([("a", 1)], session=object()), dict[tuple[str, int], list[Media]])
    plain: Callable[[int], Media | None] = get_media
    plain(1)
    get_media("1")  # wrong
    get_media()  # wrong
    get_media(1, 2)  # wrong
    get_media(id=1)  # wrong
    get_media.lookup("1")  # wrong
    get_media.refresh("1")  # wrong
    get_media.original("1")  # wrong
    get_media.get_many(1)  # wrong
    get_page("a", session=1, more=2)  # wrong
    get_media.nothing()  # wrong
    title: str = get_media(1)  # wrong
    del title


def methods(shop: Shop) -> None:
    assert_type(shop.price(1), float)
    assert_type(shop.price(1, currency="USD"), float)
    assert_type(shop.price.lookup(1), Entry)
    assert_type(shop.price.refresh(1), float)
    assert_type(shop.price.get_many([1, 2]), dict[int, float])
    assert_type(shop.price.original(1), float)
    assert_type(Shop.price(shop, 1), float)
    assert_type(Shop.is_open(1), bool)
    assert_type(Shop.is_open.key(1), bytes)
    shop.price("1")  # wrong
    shop.price()  # wrong
    shop.price(shop, 1)  # wrong
    shop.price.lookup("1")  # wrong
    Shop.price(1)  # wrong
    Shop.is_open("1")  # wrong


def batches(shop: Shop, more: Iterable[int]) -> None:
    assert_type(get_users([1, 2]), dict[int, Media])
    assert_type(get_users.lookup(1), Entry)
    assert_type(get_users.peek(1), Entry | None)
    assert_type(get_users.refresh([1]), dict[int, Media])
    assert_type(get_users.key(1), bytes)
    get_users.invalidate(1, 2)
    assert_type(shop.stock([1]), dict[int, float])
    assert_type(shop.stock.lookup(1), Entry)
    get_users(1)  # wrong
    get_users(["1"])  # wrong
    get_users.lookup("1")  # wrong
    get_users.key("1")  # wrong
    get_users.invalidate([1])  # wrong
    get_users.invalidate_on_commit(object(), "1")  # wrong
    cache.commit_message(len, 1)  # wrong
    get_users.get_many([1])  # wrong
    get_users(more)  # wrong
    shop.stock("ab")  # wrong


def policies() -> None:
    cache.cached("a", ttl=60, on_wait_timeout="stale", codec="json", compress_over=1000, version=2, negative_ttl=None)
    cache.cached_many("a:{b}", ttl=60, refresh_ahead=5, lease_for=5.5, wait_for=0, jitter=0.2, stale_for=3)
    Policy(ttl=60, on_wait_timeout="raise")
    cache.cached("a", ttl="60")  # wrong
    cache.cached("a", ttl=60, stale=5)  # wrong
    cache.cached("a", ttl=60, on_wait_timeout="retry")  # wrong
    cache.cached("a", ttl=60, codec="yaml")  # wrong
    cache.cached("a", ttl=60, version="1")  # wrong
    cache.cached("a", ttl=60, depends_on="media")  # wrong
    cache.cached_many("a:{b}", ttl=60, lease=1)  # wrong
    cache.cached(60)  # wrong
    Policy(60)  # wrong
    Policy(ttl=60, codec="yaml")  # wrong
