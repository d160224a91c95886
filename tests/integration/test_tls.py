"""memcached over TLS: the right authority, the wrong one, none at all, and a server that asks who we are."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from leasecache import Cache, ConfigError, Hit, Lease, NodeError, Stored
from leasecache.errors import GuardError
from leasecache.lab import MemcachedServer
from leasecache.lab.memcached import Certificate
from leasecache.stores.dial import Tls
from leasecache.stores.memcached import MemcachedNode
from leasecache.stores.routed import RoutedStore
from tests.fix_guard import Voucher


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority that signs the servers' certificates."""
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the authority's certificate, a stranger's, and what servers and clients show."""
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "stranger.pem")
    for name, host in (("server", "127.0.0.1"), ("elsewhere", "cache.example"), ("client", "application.example")):
        issued = authority.issue_cert(host)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    return folder


def certificate(files: Path, name: str = "server") -> Certificate:
    return Certificate(files / f"{name}.pem", files / f"{name}.key")


@pytest.fixture(params=[False, True], ids=["system", "recent"])
def server(request: pytest.FixtureRequest, files: Path) -> Iterator[MemcachedServer]:
    """A memcached that speaks TLS."""
    with MemcachedServer(recent=request.param, certificate=certificate(files)) as running:
        yield running


def use(cache: Cache) -> None:
    """Store a value and read it back."""
    lease = cache.lease_get(b"item")
    assert isinstance(lease, Lease)
    assert cache.lease_set(lease, b"x" * 100_000, 60) == Stored()
    found = cache.lease_get(b"item")
    assert isinstance(found, Hit)
    assert found.value == b"x" * 100_000
    assert cache.driver().store.look(b"item") is not None
    cache.invalidate(b"item")


def test_leases_over_tls(server: MemcachedServer, files: Path) -> None:
    """With the authority of the server's certificate everything goes as over plain TCP."""
    with Cache.from_url(f"{server.url}?ca={files}/ca.pem") as cache:
        use(cache)


def test_fork_with_an_open_tls_connection(server: MemcachedServer, files: Path) -> None:
    """A child opens connections of its own, and leaves those of its parent usable."""
    with Cache.from_url(f"{server.url}?ca={files}/ca.pem") as cache:
        use(cache)
        pid = os.fork()
        if pid == 0:
            use(cache)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        use(cache)


def test_guarded_over_tls(server: MemcachedServer, files: Path) -> None:
    """The record and the value come over Python's socket, are compared and judged as over any other."""
    node, vouching = [MemcachedNode(server.address, tls=Tls(ca=f"{files}/ca.pem")) for _ in range(2)]
    RoutedStore([node], guarded=True)
    voucher = Voucher(vouching)
    read = node.reader(10, 0, 0x10000001, b"0123456789ab")
    voucher.vouch(marks=[b"0123456789ab"])
    lease = read(b"item")
    assert isinstance(lease, Lease)
    assert node.lease_set(lease, 0x10000001, b"x" * 100_000, 60) == Stored()
    assert read(b"item") == b"x" * 100_000
    found = node.look(b"item", b"0123456789ab")
    assert found is not None
    assert found.value == b"x" * 100_000
    voucher.bump()
    assert isinstance(read(b"item"), Lease)
    voucher.withdraw()
    with pytest.raises(GuardError):
        read(b"item")
    node.close()
    vouching.close()


def test_restart_over_tls_costs_no_failed_call(server: MemcachedServer, files: Path) -> None:
    """Idle connections that the server has ended are told from those that it has not, over TLS as over plain TCP."""
    node = MemcachedNode(server.address, tls=Tls(ca=f"{files}/ca.pem"))
    for connection in [node._pool.acquire() for _ in range(4)]:
        node._pool.release(connection)
    node._pool.drop_ended()
    assert node.connections == (4, 4)
    server.restart()
    for i in range(8):
        assert isinstance(node.lease_get(b"item:%d" % i, 10), Lease)
    assert (node.errors.broken, node.connections) == (1, (1, 1))
    node.close()


@pytest.mark.parametrize("authority_file", ["?ca={files}/stranger.pem", ""])
def test_unknown_authority(authority_file: str, server: MemcachedServer, files: Path) -> None:
    """A certificate that nobody we trust has signed is an error of the node; the application's values are loaded.

    Guard: the check of the certificate.
    """
    with Cache.from_url(server.url + authority_file.format(files=files)) as cache:

        @cache.cached("item:{item_id}", ttl=60)
        def get_item(item_id: int) -> int:
            return item_id

        with pytest.raises(NodeError, match=rf"{server.address}: .*; is ca= the authority that signed it\?"):
            cache.lease_get(b"item")
        assert get_item(7) == 7


def test_certificate_of_another_host(files: Path) -> None:
    """A server that shows a certificate for another name is not the one of the URL; guard: the check of the name."""
    with (
        MemcachedServer(certificate=certificate(files, "elsewhere")) as server,
        Cache.from_url(f"{server.url}?ca={files}/ca.pem") as cache,
        pytest.raises(NodeError, match=r"not valid for '127\.0\.0\.1'"),
    ):
        cache.lease_get(b"item")


def test_server_that_asks_for_our_certificate(files: Path) -> None:
    """A server that verifies its clients gets cert= and key=; without them it ends the connection."""
    asking = certificate(files)._replace(clients=files / "ca.pem")
    with MemcachedServer(certificate=asking) as server:
        url = f"{server.url}?ca={files}/ca.pem"
        with Cache.from_url(f"{url}&cert={files}/client.pem&key={files}/client.key") as cache:
            use(cache)
        with Cache.from_url(url) as cache, pytest.raises(NodeError):
            cache.lease_get(b"item")


def test_files_that_are_no_certificates() -> None:
    """An option that names a file without a certificate is a configuration error that names the file."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"memcacheds://127.0.0.1:{listening.getsockname()[1]}?ca={__file__}"
        with Cache.from_url(url) as cache, pytest.raises(ConfigError, match=f"cannot use the TLS files {__file__}"):
            cache.lease_get(b"item")


def test_plain_url_of_a_tls_server(server: MemcachedServer) -> None:
    """Without memcacheds:// the server hangs up, and the error asks whether it expects TLS."""
    plain = server.url.replace("memcacheds", "memcached")
    with Cache.from_url(plain) as cache, pytest.raises(NodeError, match=r"does it expect TLS \(memcacheds://\)\?"):
        cache.lease_get(b"item")


def test_tls_url_of_a_plain_server(memcached: MemcachedServer, files: Path) -> None:
    """A server without TLS does not answer the handshake; that is an error of the node within its time."""
    url = memcached.url.replace("memcached://", "memcacheds://")
    with Cache.from_url(f"{url}?ca={files}/ca.pem&connect_timeout=0.5") as cache, pytest.raises(NodeError):
        cache.lease_get(b"item")
