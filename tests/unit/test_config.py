"""Cache URLs: what they say, and which faults are named with their fix. Nothing here connects."""

from pathlib import Path

import pytest

from leasecache import Cache, ConfigError, UnguardedWarning, row
from leasecache.config import CacheUrl, open_store, parse_url
from tests.fix_patience import PROMISED


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://", CacheUrl(scheme="memory")),
        ("null://", CacheUrl(scheme="null")),
        ("memory://?capacity=1000", CacheUrl(scheme="memory", options={"capacity": 1000})),
        ("memcached://h", CacheUrl(scheme="memcached", nodes=("h:11211",), weights=(1,))),
        ("memcached://h:1/", CacheUrl(scheme="memcached", nodes=("h:1",), weights=(1,))),
        (
            "memcached://10.0.0.1:1,b.c:2,d",
            CacheUrl(scheme="memcached", nodes=("10.0.0.1:1", "b.c:2", "d:11211"), weights=(1, 1, 1)),
        ),
        ("memcached://[::1]", CacheUrl(scheme="memcached", nodes=("[::1]:11211",), weights=(1,))),
        ("memcached://[::1]:5", CacheUrl(scheme="memcached", nodes=("[::1]:5",), weights=(1,))),
        (
            "memcached://h:1,[::1]:2,[fe80::2]",
            CacheUrl(scheme="memcached", nodes=("h:1", "[::1]:2", "[fe80::2]:11211"), weights=(1, 1, 1)),
        ),
        ("memcached:///run/my%20cache.sock", CacheUrl(scheme="memcached", nodes=("/run/my cache.sock",), weights=(1,))),
        (
            "memcached:///run/m.sock?namespace=shop",
            CacheUrl(scheme="memcached", nodes=("/run/m.sock",), weights=(1,), namespace="shop"),
        ),
        ("memcached://h*3,b:1", CacheUrl(scheme="memcached", nodes=("h:11211", "b:1"), weights=(3, 1))),
        (
            "memcached://app:s%40%2Fp@h,b:1",
            CacheUrl(scheme="memcached", nodes=("h:11211", "b:1"), weights=(1, 1), credentials=("app", "s@/p")),
        ),
        (
            "memcached://app:word@/run/m.sock",
            CacheUrl(scheme="memcached", nodes=("/run/m.sock",), weights=(1,), credentials=("app", "word")),
        ),
        (
            "memcached://h?proxied=true",
            CacheUrl(scheme="memcached", nodes=("h:11211",), weights=(1,), options={"proxied": True}),
        ),
        (
            f"memcacheds://h?ca={__file__}",
            CacheUrl(scheme="memcacheds", nodes=("h:11211",), weights=(1,), options={"ca": __file__}),
        ),
        (
            "memcached://h?namespace=shop-1&guard=none&timeout=0.5&connect_timeout=2&pool=8",
            CacheUrl(
                scheme="memcached",
                nodes=("h:11211",),
                weights=(1,),
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
        ("memcached://::1", "is not host:port or host:port\\*weight; an IPv6 address stands in brackets"),
        ("memcached://[::1", r"'\[::1' is not host:port"),
        ("memcached://h/0", "expected memcached://host:port,host:port"),
        ("memcached://user@h", "before the @ stand a user and a password"),
        ("memcached://:word@h", "before the @ stand a user and a password"),
        ("memcached://h*0", r"'h\*0' is not host:port or host:port\*weight"),
        ("memcached://h*100", r"'h\*100' is not host:port or host:port\*weight"),
        ("memcached://h?proxied=yes", "proxied must be true or false, not 'yes'"),
        ("memcached://h?ca=/x.pem", "unknown option 'ca'; TLS is memcacheds://"),
        ("memcacheds://h?ca=/nowhere.pem", "ca names no file that can be read: '/nowhere.pem'"),
        ("memcached://h:1,h:1", "names a node twice"),
        ("memcached://h,h:11211", "names a node twice"),
        ("memory://host", "memory:// takes no address"),
        ("null:///path", "null:// takes no address"),
        ("memcached://h?timeuot=1", "unknown option 'timeuot'; did you mean 'timeout'"),
        ("memcached://h?name_space=x", "unknown option 'name_space'; did you mean 'namespace'"),
        (
            "memcached://h?zzz=1",
            "unknown option 'zzz'; known are timeout, connect_timeout, pool, proxied, namespace, guard",
        ),
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
        ("memcached://h?guard=maybe", "guard='maybe' is not known; it is 'none'"),
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
    with pytest.raises(ConfigError, match="guard='maybe' is not known"):
        Cache.from_url("memory://", guard="maybe")


def test_a_refused_url_changes_nothing() -> None:
    """A cache whose new URL is refused goes on with the old one."""
    cache = Cache.from_url("memory://?namespace=old")
    with pytest.raises(ConfigError):
        cache.configure("memcached://h?timeout=0")
    with pytest.raises(ConfigError):
        cache.configure("memory://?namespace=new", guard="maybe")
    assert cache.driver().store.namespace == "old"


def test_what_is_configured_within_override_waits_for_its_end() -> None:
    """An application that starts within a test does not leave the store that the test has chosen."""
    cache = Cache()
    with cache.override("memory://?namespace=outer"):
        cache.configure("memory://?namespace=first")
        with cache.override("memory://?namespace=inner"):
            cache.configure("memory://?namespace=second")
            assert cache.driver().store.namespace == "inner"
        assert cache.driver().store.namespace == "outer"
    assert cache.driver().store.namespace == "second"


def unguarded(cache: Cache) -> None:
    """Declare a function that an unguarded networked cache warns of."""

    @cache.cached("f:{a}", ttl=60, depends_on=row("t", a="id"))
    def f(a: int) -> int:
        return a


def test_the_warning_names_the_line_that_is_to_blame() -> None:
    """Whether the URL or the function comes last, the warning points to the application's line, once."""
    cache = Cache()
    unguarded(cache)
    with pytest.warns(UnguardedWarning, match="pass guard='daemon', or guard='none'") as late:
        cache.configure("memcached://h")
    unguarded(cache)
    with pytest.warns(UnguardedWarning) as early:
        unguarded(Cache.from_url("memcached://h"))
    assert [[Path(warning.filename).name for warning in warnings] for warnings in (late, early)] == [
        ["test_config.py"]
    ] * 2
    for url, guard in (
        ("memory://", None),
        ("null://", None),
        ("memcached://h", "none"),
        ("memcached://h?guard=none", None),
    ):
        cache.configure(url, guard=guard)


def test_errors_show_no_password() -> None:
    """A password in a URL with a fault does not come back in the error, nor in what shows the parsed URL."""
    for url in (
        "memcached://app:secret@10.0.0.1:0",
        "memcached://app:se/cret@10.0.0.1:0",
        "memory://app:secret@10.0.0.1",
    ):
        with pytest.raises(ConfigError) as caught:
            parse_url(url)
        assert "cret" not in str(caught.value)
        assert "app:***@10.0.0.1" in str(caught.value)
    with pytest.raises(ConfigError, match=r"write @ as %40 in an option, and \? as %3F in a password") as caught:
        parse_url("memcached://app:secret?word@10.0.0.1")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(parse_url("memcached://app:secret@10.0.0.1"))


def test_key_without_certificate() -> None:
    """A private key without the certificate that it belongs to is refused when the store is opened."""
    with pytest.raises(ConfigError, match="key= without cert="):
        open_store(f"memcacheds://h?key={__file__}")


def test_weights_are_shares_of_the_keys() -> None:
    """A node of weight three owns three quarters of the keys, and without weights all keys are where they were."""
    weighted = open_store("memcached://a*3,b")
    owned = sum(weighted.node_for(b"key:%d" % i).name == "a:11211" for i in range(4000))
    assert 2850 < owned < 3150
    plain, moved = open_store("memcached://a,b"), open_store("memcached://b*1,a*1")
    keys = [b"key:%d" % i for i in range(200)]
    assert [plain.node_for(k).name for k in keys] == [moved.node_for(k).name for k in keys]


def test_more_weight_moves_keys_to_that_node_only() -> None:
    """Raising a node's weight moves keys to it and none between the others."""
    before, after = open_store("memcached://a,b,c"), open_store("memcached://a*2,b,c")
    keys = [b"key:%d" % i for i in range(1000)]
    moved = {after.node_for(k).name for k in keys if before.node_for(k).name != after.node_for(k).name}
    assert moved == {"a:11211"}


def test_time_limits_that_a_url_does_not_name() -> None:
    """An exchange, and connecting, may take a second."""
    assert set(PROMISED) == {1.0}
