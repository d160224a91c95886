"""TLS to the source: a certificate on each side, what is refused and how, and a stream that comes whole."""

import contextlib
import json
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from leasecache.config import open_store
from leasecache.errors import SourceError
from leasecache.invalidation.source import Replication, connect
from leasecache.invalidation.survey import read_link
from leasecache.lab import MemcachedServer, PostgresServer, RedisServer, free_port, wait_until
from leasecache.lab.memcached import Certificate
from leasecache.lease import Lease, Stored
from tests.fix_daemon import PREPARE, ROLE, RULES, SLOT, WITHIN, DaemonProcess, run_to_exit

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class Front:
    """What a Postgres with TLS is to its clients: it answers their request for TLS and hands the rest to a server."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port, self._context = port, context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            assert client.recv(8) == SSL_REQUEST
            client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as secured:
                secured.setblocking(False)
                self._carry(secured)

    def _carry(self, secured: ssl.SSLSocket) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            while True:
                select.select([] if secured.pending() else [secured, server], [], [])
                with contextlib.suppress(ssl.SSLWantReadError):
                    asked = secured.recv(65536)
                    if not asked:
                        return
                    server.sendall(asked)
                answered = server.recv(65536) if select.select([server], [], [], 0)[0] else None
                if answered == b"":
                    return
                while answered:
                    with contextlib.suppress(ssl.SSLWantWriteError):
                        answered = answered[secured.send(answered) :]

    def close(self) -> None:
        """Take no more clients."""
        self._listening.close()


@dataclass(frozen=True)
class Secured:
    """A Postgres that talks TLS under the name `localhost`, and files of its authority."""

    server: PostgresServer
    port: int
    files: Path

    def dsn(self, **changes: str) -> str:
        """Return a DSN that checks everything; an empty change leaves its key out."""
        keys = {
            "host": "localhost",
            "hostaddr": "127.0.0.1",
            "port": str(self.port),
            "dbname": "app",
            "user": ROLE,
            "sslmode": "verify-full",
            "sslrootcert": f"{self.files}/ca.pem",
            "sslcert": f"{self.files}/client.pem",
            "sslkey": f"{self.files}/client.key",
        }
        return " ".join(f"{key}={value}" for key, value in (keys | changes).items() if value)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A Postgres whose clients need a certificate, prepared for the daemon."""
    files, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.cert_pem.write_to_path(files / "ca.pem")
    trustme.CA().cert_pem.write_to_path(files / "other.pem")
    client = authority.issue_cert("x@example.org", common_name=ROLE)
    client.private_key_pem.write_to_path(files / "client.key")
    (files / "client.key").chmod(0o600)
    client.cert_chain_pems[0].write_to_path(files / "client.pem")
    issued = authority.issue_cert("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with PostgresServer() as server:
        for statement in PREPARE:
            server.query(statement)
        front = Front(server.port, context)
        yield Secured(server, front.port, files)
        front.close()


def test_both_sides_are_checked(secured: Secured) -> None:
    """With verify-full and a client certificate, questions and the stream go over a connection that is checked."""
    with connect(secured.dsn()) as connection:
        link = read_link(connection)
        assert (link.encrypted, link.verified, link.remote) == (True, True, False)
    replication = Replication(secured.dsn())
    assert replication.query("select current_user") == [(ROLE,)]
    replication.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sslrootcert": "other.pem"}, "its certificate is not from the authority in sslrootcert"),
        ({"sslrootcert": "gone.pem"}, "the file of sslrootcert is not there"),
        ({"host": "127.0.0.1"}, "its certificate is for another name"),
        ({"sslcert": "", "sslkey": ""}, "add sslcert and sslkey"),
        ({"sslkey": "ca.pem"}, "ca.pem"),
    ],
)
def test_refusals(secured: Secured, changes: dict[str, str], says: str) -> None:
    """Each fault of a secured connection is one line that says what to do, and shows no password."""
    paths = {key: f"{secured.files}/{value}" if value.endswith("pem") else value for key, value in changes.items()}
    with pytest.raises(SourceError) as caught:
        connect(secured.dsn(password="hush", **paths))
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert "hush" not in text


def test_a_server_without_tls() -> None:
    """A server that does not speak TLS is named as such."""
    with PostgresServer() as server, pytest.raises(SourceError, match="the server does not speak TLS"):
        connect(f"{server.dsn()}?sslmode=require")


def test_no_frame_waits_for_the_next(secured: Secured) -> None:
    """What TLS has decrypted is read though the socket is silent, wherever its records end."""
    server = secured.server
    server.create_logical_slot(SLOT)
    replication = Replication(secured.dsn())
    try:
        replication.start(SLOT, "leasecache")
        random.seed(7)
        with server.connect() as connection:
            for number in range(50):
                rows, size = random.randrange(1, 400), random.randrange(1, 2_000)
                connection.execute(
                    "insert into media select %s + n, repeat('x', %s) from generate_series(1, %s) as n",
                    [number * 1000, size, rows],
                )
                await_commit(replication, f"{rows} rows of {size} bytes")
    finally:
        replication.close()
        server.drop_logical_slots()


def await_commit(replication: Replication, what: str) -> None:
    """Read a transaction whose bytes have all been sent, waiting for the socket only."""
    ready = select.poll()
    ready.register(replication.socket, select.POLLIN)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(frame[25:26] == b"C" for frame in replication.read(1000)):
            return
        assert ready.poll(15_000), f"the socket is silent, and the transaction incomplete: {what}"
    raise TimeoutError(what)


@pytest.fixture
def caches(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URLs of a Redis and a memcached that talk TLS."""
    authority, port = trustme.CA(), free_port()
    issued = authority.issue_cert("127.0.0.1")
    ca, key, chain = tmp_path / "caches.pem", tmp_path / "caches.key", tmp_path / "caches.chain"
    authority.cert_pem.write_to_path(ca)
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(chain)
    with (
        RedisServer() as redis,
        MemcachedServer(certificate=Certificate(chain, key), credentials=("app", "s3cret")) as memcached,
    ):
        (redis.data / "key.pem").write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        (redis.data / "key.pem").chmod(0o644)
        redis.ask(
            f"CONFIG SET tls-key-file {redis.data}/key.pem",
            f"CONFIG SET tls-cert-file {redis.data}/key.pem",
            f"CONFIG SET tls-auth-clients no tls-port {port} requirepass s3cret",
        )
        yield (
            f"rediss://:s3cret@127.0.0.1:{port}/0?namespace=shop&ca={ca}",
            f"memcacheds://app:s3cret@{memcached.address}?namespace=shop&ca={ca}",
        )


def test_the_daemon(secured: Secured, caches: tuple[str, str], tmp_path: Path) -> None:
    """A daemon follows over TLS and invalidates on several caches over TLS, and shows no password anywhere."""
    daemon = DaemonProcess(tmp_path, secured.dsn(password="hush"), caches[0], RULES)
    more = f"more = [{json.dumps(caches[1])}]"
    daemon.config.write_text(daemon.config.read_text().replace("[cache]\n", f"[cache]\n{more}\n"))
    stores = [open_store(url) for url in caches]
    secured.server.create_logical_slot(SLOT)
    try:
        for store in stores:
            lease = store.lease_get(b"shop:tags:7", 10)
            assert isinstance(lease, Lease)
            assert isinstance(store.lease_set(lease, 1, b"old", 3600), Stored)
        daemon.start().streaming()
        secured.server.query("insert into tags values (7, 'new')")
        for store in stores:
            wait_until(lambda store=store: store.look(b"shop:tags:7") is None, WITHIN, daemon.log())  # type: ignore[misc]
        secured.server.query("select pg_terminate_backend(pid) from pg_stat_replication")
        wait_until(lambda: daemon.log().count("event=streaming") == 2, WITHIN, daemon.log())
        pages = [daemon.get(path)[1] for path in ("/", "/status.json", "/metrics", "/readyz")]
        checks = [
            run_to_exit(["-m", "leasecache.cli", "check", *json_or_not, "--config", str(daemon.config)])[1:]
            for json_or_not in ([], ["--json"])
        ]
        assert daemon.terminate() == 0
    finally:
        daemon.kill()
        for store in stores:
            store.close()
        secured.server.drop_logical_slots()
    assert "encrypted" not in str(checks)
    shown = f"{pages}{checks}{daemon.log()}"
    assert [secret for secret in ("hush", "s3cret") if secret in shown] == []
