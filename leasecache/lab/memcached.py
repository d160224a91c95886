"""memcached."""

import shutil
import socket
import ssl
from pathlib import Path
from typing import NamedTuple

from leasecache.lab.install import memcached_program, recent_memcached
from leasecache.lab.servers import HOST, Server


class Certificate(NamedTuple):
    """Files in PEM form: a certificate with its chain, and its key."""

    chain: Path
    key: Path
    clients: Path | None = None  # the authority of the clients' certificates, if they are asked for one


class MemcachedServer(Server):
    """Run memcached; `arguments` are added to its command line, for example "-m", "8", "-I", "2m".

    The system's, or with `recent` one of 1.6.27 or later. `credentials` are the user and password that it asks for;
    with a `certificate` it speaks TLS. Raises ConfigError when it is not installed.
    """

    def __init__(
        self,
        *arguments: str,
        name: str = "memcached",
        recent: bool = False,
        credentials: tuple[str, str] | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(name)
        self._program = recent_memcached() if recent else (str(memcached_program()),)
        self._arguments = arguments
        self._credentials = credentials
        self._certificate = certificate

    @property
    def url(self) -> str:
        """Return the URL for `Cache.from_url`; with a certificate `?ca=` has to be added."""
        scheme = "memcacheds" if self._certificate else "memcached"
        return f"{scheme}://{':'.join(self._credentials) + '@' if self._credentials else ''}{self.address}"

    def prepare(self) -> None:
        if self._credentials:
            self._passwords.write_text(":".join(self._credentials) + "\n")
        for name, source in (self._certificate._asdict() if self._certificate else {}).items():
            if source is not None:
                shutil.copy(source, self.data / name)
                (self.data / name).chmod(0o644)  # for the account that the server runs as

    @property
    def _passwords(self) -> Path:
        return self.data / "passwords"

    def command(self) -> list[str]:
        command = [*self._program, "-l", HOST, "-p", str(self.port), "-U", "0", *self._arguments]
        if self._credentials:
            command += ["-Y", str(self._passwords)]
        if self._certificate:
            command += ["-Z", "-o", f"ssl_chain_cert={self.data / 'chain'},ssl_key={self.data / 'key'}"]
            if self._certificate.clients:
                command += ["-o", f"ssl_verify_mode=2,ssl_ca_cert={self.data / 'clients'}"]
        return command

    def ready(self) -> bool:
        return f"STAT pid {self.pid}\r\n" in self.ask("stats")

    def ask(self, command: str) -> str:
        """Send one administrative command; return the reply, which may be cut after 64 KiB, or "" when nobody answers.

        `command` is a line without its end, such as "stats" or "flush_all".
        """
        proof = " ".join(self._credentials or ())
        greeting = f"set auth 0 -1 {len(proof)}\r\n{proof}\r\n" if proof else ""
        try:
            with self._connection() as connection:
                connection.sendall(f"{greeting}{command}\r\nquit\r\n".encode())
                return connection.makefile("rb").read(65536).decode()
        except OSError:
            return ""

    def _connection(self) -> socket.socket:
        connection = socket.create_connection((HOST, self.port), timeout=1)
        if self._certificate is None:
            return connection
        with connection:  # which the TLS socket takes over
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if self._certificate.clients:
                context.load_cert_chain(self._certificate.chain, self._certificate.key)
            return context.wrap_socket(connection)
