"""Redis URLs: what they say, which faults are named with their fix, and that none shows a password."""

import pytest

from leasecache import ConfigError
from leasecache.config import CacheUrl, open_async_store, open_store, parse_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", CacheUrl(scheme="redis", nodes=("h:6379",), weights=(1,))),
        ("redis://h:1/", CacheUrl(scheme="redis", nodes=("h:1",), weights=(1,))),
        ("redis://h/2?pool=3", CacheUrl(scheme="redis", nodes=("h:6379",), weights=(1,), db=2, options={"pool": 3})),
        ("redis://a,b:2*3/1", CacheUrl(scheme="redis", nodes=("a:6379", "b:2"), weights=(1, 3), db=1)),
        ("redis://:p@h", CacheUrl(scheme="redis", nodes=("h:6379",), weights=(1,), credentials=("", "p"))),
        (
            "redis://u%3A:p%40%2F%3F@h/1",
            CacheUrl(scheme="redis", nodes=("h:6379",), weights=(1,), credentials=("u:", "p@/?"), db=1),
        ),
        ("redis:///run/a%20b.sock?db=4", CacheUrl(scheme="redis", nodes=("/run/a b.sock",), weights=(1,), db=4)),
        (
            "redis://:p@/run/r.sock",
            CacheUrl(scheme="redis", nodes=("/run/r.sock",), weights=(1,), credentials=("", "p")),
        ),
        (
            "redis+sentinel://a,b:2/app/3",
            CacheUrl(scheme="redis+sentinel", nodes=("a:26379", "b:2"), weights=(1,), service="app", db=3),
        ),
        (
            "rediss+sentinel://a/the%20app?namespace=x",
            CacheUrl(scheme="rediss+sentinel", nodes=("a:26379",), weights=(1,), service="the app", namespace="x"),
        ),
        ("redis+cluster://a,[::1]:2", CacheUrl(scheme="redis+cluster", nodes=("a:6379", "[::1]:2"), weights=(1,))),
        ("rediss+cluster://a/", CacheUrl(scheme="rediss+cluster", nodes=("a:6379",), weights=(1,))),
    ],
)
def test_urls(url: str, expected: CacheUrl) -> None:
    """Every part of a URL is read, and has its default."""
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://", "'' is not host:port"),
        ("redis://h/zero", r"expected redis://host:port/database"),
        ("redis://h/1/2", r"expected redis://host:port/database"),
        ("redis://h/-1", r"expected redis://host:port/database"),
        ("redis://h?db=1", r"the database stands behind the address, as in redis://host:port/1"),
        ("redis:///run/r.sock?db=x", "db must be the number of a database, not 'x'"),
        ("rediss:///run/r.sock", r"expected rediss://host:port/database"),
        ("redis+sentinel://h", r"expected redis\+sentinel://host:port,host:port/service/database"),
        ("redis+sentinel://h/app/x", r"expected redis\+sentinel://host:port,host:port/service/database"),
        ("redis+sentinel://h*2/app", r"takes no weights; Redis says who owns a key"),
        ("redis+cluster://h/1", r"expected redis\+cluster://host:port,host:port"),
        ("redis+cluster://h*2", r"takes no weights; Redis says who owns a key"),
        ("redis+cluster://h?db=1", "unknown option 'db'"),
        ("redis://h?ca=/x", "unknown option 'ca'; TLS is rediss://"),
        ("redis+cluster://h?ca=/x", r"unknown option 'ca'; TLS is rediss\+cluster://"),
        ("rediss://h?ca=/nowhere", "ca names no file that can be read"),
        ("redis://h?proxied=true", "unknown option 'proxied'"),
        ("redis://u@h", "before the @ stand a user and a password, as in :password@host or user:password@host"),
        ("redis://u:@h", "before the @ stand a user and a password"),
        ("redis+tls://h", "the scheme must be one of"),
    ],
)
def test_faults(url: str, message: str) -> None:
    """A URL with a fault is a ConfigError that names the fault."""
    with pytest.raises(ConfigError, match=message):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:secret@h/zero",
        "redis://:sec/ret@h/zero",
        "redis://:sec@ret@h/zero",
        "redis://:sec?ret@h/0",
        "redis+cluster://:secret@h/1",
        "redis+sentinel://:secret@h",
        "rediss://:secret@h?timeout=0",
        "redis://:secret@h?secret@timeout=1",
    ],
)
def test_errors_show_no_password(url: str) -> None:
    """A password does not come back in an error, wherever its special characters break the URL."""
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize("opened", [open_store, open_async_store])
@pytest.mark.parametrize(
    "url", ["redis://192.0.2.1/1", "rediss://h", "redis:///nowhere", "redis+sentinel://h/app", "redis+cluster://a,b:2"]
)
def test_opens_nothing_and_shows_no_password(url: str, opened: object) -> None:
    """Opening a store does not connect; the names of its nodes, which operators see, hold no password."""
    store = opened(url.replace("://", "://:secret@") + "?namespace=shop")  # type: ignore[operator]
    assert store.namespace == "shop"
    assert "secret" not in "".join(node.name for node in store.nodes)
    assert "secret" not in repr(parse_url(url.replace("://", "://:secret@")))
