"""The asynchronous half of an application: never run. A line that ends in "# wrong" must be reported, no other one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import assert_type

from leasecache import AsyncCache, Entry

cache = AsyncCache.from_url("redis://10.0.0.1:6379/0?namespace=shop")


@dataclass
class Media:
    """A value."""

    id: int
    title: str


@cache.cached("media:{media_id}", ttl=3600, stale_for=60)
async def get_media(media_id: int) -> Media | None:
    return Media(media_id, "sunset")


@cache.cached_many("user:{user_id}", ttl=600)
async def get_users(user_ids: Sequence[int]) -> Mapping[int, Media]:
    return {}


class Shop:
    """Has cached methods."""

    @cache.cached("price:{item}", ttl=60)
    async def price(self, item: int, currency: str = "EUR") -> float:
        return 1.0

    @cache.cached_many("stock:{item}", ttl=60)
    async def stock(self, items: Sequence[int]) -> Mapping[int, float]:
        return {}


async def functions() -> None:
    assert_type(await get_media(1), Media | None)
    assert_type(await get_media.lookup(media_id=1), Entry)
    assert_type(await get_media.peek(1), Entry | None)
    assert_type(await get_media.refresh(1), Media | None)
    assert_type(await get_media.get_many([1, 2]), dict[int, Media | None])
    assert_type(get_media.key(1), bytes)
    await get_media.invalidate(1)
    await get_media.invalidate_on_commit(object(), 1)
    assert_type(cache.commit_message(get_media, 1).sql, str)
    await get_media.original(1)
    await get_media("1")  # wrong
    await get_media()  # wrong
    await get_media.lookup("1")  # wrong
    await get_media.key(1)  # wrong
    await get_media.commit_message(1)  # wrong
    await get_media.get_many(1)  # wrong
    get_media(1).title()  # wrong
    for _ in get_media.get_many([1]):  # wrong
        pass


async def methods(shop: Shop) -> None:
    assert_type(await shop.price(1), float)
    assert_type(await shop.price.refresh(1, currency="USD"), float)
    assert_type(await shop.price.get_many([1, 2]), dict[int, float])
    assert_type(await Shop.price(shop, 1), float)
    await shop.price("1")  # wrong
    await shop.price(shop, 1)  # wrong
    await Shop.price(1)  # wrong


async def batches(shop: Shop) -> None:
    assert_type(await get_users([1, 2]), dict[int, Media])
    assert_type(await get_users.lookup(1), Entry)
    assert_type(await get_users.refresh([1]), dict[int, Media])
    assert_type(get_users.key(1), bytes)
    await get_users.invalidate(1, 2)
    assert_type(await shop.stock([1]), dict[int, float])
    await get_users(1)  # wrong
    await get_users.peek("1")  # wrong
    await shop.stock(["1"])  # wrong


def policies() -> None:
    cache.cached("a", ttl=60, stale=5)  # wrong
    cache.cached_many("a:{b}", ttl="60")  # wrong
    cache.cached("a", ttl=60)(len)  # wrong


@cache.cached("plain", ttl=60)  # wrong
def plain() -> int:
    return 1
