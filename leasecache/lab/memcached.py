"""memcached."""

import socket

from leasecache.lab.install import memcached_program, recent_memcached
from leasecache.lab.servers import HOST, Server


class MemcachedServer(Server):
    """Run memcached; `arguments` are added to its command line, for example "-m", "8", "-I", "2m".

    The system's, or with `recent` one of 1.6.27 or later. Raises ConfigError when it is not installed.
    """

    def __init__(self, *arguments: str, name: str = "memcached", recent: bool = False) -> None:
        super().__init__(name)
        self._program = recent_memcached() if recent else (str(memcached_program()),)
        self._arguments = arguments

    @property
    def url(self) -> str:
        """Return the URL for `Cache.from_url`."""
        return f"memcached://{self.address}"

    def command(self) -> list[str]:
        return [*self._program, "-l", HOST, "-p", str(self.port), "-U", "0", *self._arguments]

    def ready(self) -> bool:
        return f"STAT pid {self.pid}\r\n" in self.ask("stats")

    def ask(self, command: str) -> str:
        """Send one administrative command; return the reply, which may be cut after 64 KiB, or "" when nobody answers.

        `command` is a line without its end, such as "stats" or "flush_all".
        """
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(f"{command}\r\nquit\r\n".encode())
                return connection.makefile("rb").read(65536).decode()
        except OSError:
            return ""
