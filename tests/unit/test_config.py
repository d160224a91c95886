"""Cache URLs: what they say, and which faults are named with their fix. Nothing here connects."""

import pytest

from leasecache import Cache, ConfigError
from leasecache.config import CacheUrl, open_store, parse_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://", CacheUrl(scheme="memory")),
        ("null://", CacheUrl(scheme="null")),
        ("memory://?capacity=1000", CacheUrl(scheme="memory", options={"capacity": 1000})),
        ("memcached://h", CacheUrl(scheme="memcached", nodes=("h:11211",))),
        ("memcached://h:1/", CacheUrl(scheme="memcached", nodes=("h:1",))),
        ("memcached://10.0.0.1:1,b.c:2,d", CacheUrl(scheme="memcached", nodes=("10.0.0.1:1", "b.c:2", "d:11211"))),
        ("memcached://[::1]", CacheUrl(scheme="memcached", nodes=("[::1]:11211",))),
        ("memcached://[::1]:5", CacheUrl(scheme="memcached", nodes=("[::1]:5",))),
        (
            "memcached://h:1,[::1]:2,[fe80::2]",
            CacheUrl(scheme="memcached", nodes=("h:1", "[::1]:2", "[fe80::2]:11211")),
        ),
        ("memcached:///run/my%20cache.sock", CacheUrl(scheme="memcached", nodes=("/run/my cache.sock",))),
        (
            "memcached:///run/m.sock?namespace=shop",
            CacheUrl(scheme="memcached", nodes=("/run/m.sock",), namespace="shop"),
        ),
        (
            "memcached://h?namespace=shop-1&guard=none&timeout=0.5&connect_timeout=2&pool=8",
            CacheUrl(
                scheme="memcached",
                nodes=("h:11211",),
                namespace="shop-1",
                guard="none",
                options={"timeout": 0.5, "connect_timeout": 2.0, "pool": 8},
            ),
        ),
    ],
)
def test_urls(url: str, expected: CacheUrl) -> None:
    """Every part of a URL is read, and has its default."""
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the scheme must be one of memcached://"),
        ("localhost:11211", "the scheme must be one of memcached://"),
        ("memcache://h", "the scheme must be one of memcached://"),
        ("memcached:h", "the scheme must be one of memcached://"),
        ("memcached://", "'' is not host:port"),
        ("memcached:///", "'' is not host:port"),
        ("memcached://h,", "'' is not host:port"),
        ("memcached://h:", "'h:' is not host:port"),
        ("memcached://h:0", "'h:0' is not host:port"),
        ("memcached://h:65536", "'h:65536' is not host:port"),
        ("memcached://h:port", "'h:port' is not host:port"),
        ("memcached://h:²", "is not host:port"),
        ("memcached://a b", "'a b' is not host:port"),
        ("memcached://::1", "'::1' is not host:port; an IPv6 address stands in brackets"),
        ("memcached://[::1", r"'\[::1' is not host:port"),
        ("memcached://h/0", "expected memcached://host:port,host:port"),
        ("memcached://user@h", "expected memcached://host:port,host:port"),
        ("memcached://h:1,h:1", "names a node twice"),
        ("memcached://h,h:11211", "names a node twice"),
        ("memory://host", "memory:// takes no address"),
        ("null:///path", "null:// takes no address"),
        ("memcached://h?timeuot=1", "unknown option 'timeuot'; did you mean 'timeout'"),
        ("memcached://h?name_space=x", "unknown option 'name_space'; did you mean 'namespace'"),
        ("memcached://h?zzz=1", "unknown option 'zzz'; known are timeout, connect_timeout, pool, namespace, guard"),
        ("memory://?timeout=1", "unknown option 'timeout'"),
        ("memcached://h?timeout=fast", "timeout must be a number above 0, not 'fast'"),
        ("memcached://h?timeout=", "timeout must be a number above 0, not ''"),
        ("memcached://h?timeout=0", "timeout must be a number above 0"),
        ("memcached://h?timeout=-1", "timeout must be a number above 0"),
        ("memcached://h?timeout=inf", "timeout must be a number above 0"),
        ("memcached://h?timeout=nan", "timeout must be a number above 0"),
        ("memcached://h?pool=1.5", "pool must be a number above 0, not '1.5'"),
        ("memcached://h?timeout=1&timeout=2", "gives an option twice"),
        ("memcached://h?namespace=", "namespace '' must be letters"),
        ("memcached://h?namespace=a:b", "namespace 'a:b' must be letters"),
        ("memcached://h?guard=maybe", "guard='maybe' is not available; use guard='none'"),
    ],
)
def test_faults(url: str, message: str) -> None:
    """A URL with a fault is a ConfigError that names the fault."""
    with pytest.raises(ConfigError, match=message):
        parse_url(url)


@pytest.mark.parametrize(
    "url", ["memory://", "null://", "memcached://192.0.2.1:1", "memcached://[::1]:1,h:2", "memcached:///nowhere"]
)
def test_opens_nothing(url: str) -> None:
    """Opening a store does not connect, so an application can start before its cache."""
    store = open_store(f"{url}?namespace=shop")
    assert store.namespace == "shop"
    store.close()


def test_guard_argument_is_checked_like_the_url() -> None:
    """`guard=` and `?guard=` refuse the same."""
    with pytest.raises(ConfigError, match="guard='maybe' is not available"):
        Cache.from_url("memory://", guard="maybe")


def test_a_refused_url_changes_nothing() -> None:
    """A cache whose new URL is refused goes on with the old one."""
    cache = Cache.from_url("memory://?namespace=old")
    with pytest.raises(ConfigError):
        cache.configure("memcached://h?timeout=0")
    with pytest.raises(ConfigError):
        cache.configure("memory://?namespace=new", guard="maybe")
    assert cache.driver().store.namespace == "old"


def test_errors_show_no_password() -> None:
    """A password in a URL, which no scheme of ours takes, does not come back in the error."""
    for url in ("redis://app:secret@10.0.0.1:6379/0", "memcached://app:secret@10.0.0.1:11211"):
        with pytest.raises(ConfigError) as caught:
            parse_url(url)
        assert "secret" not in str(caught.value)
        assert "app:***@10.0.0.1" in str(caught.value)
