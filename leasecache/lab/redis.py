"""Redis."""

import socket

from leasecache.lab.install import redis_program
from leasecache.lab.servers import HOST, Server


class RedisServer(Server):
    """Run redis-server without persistence; `arguments` are added to its command line ("--maxmemory", "8mb").

    Raises ConfigError when redis-server is not installed, or older than 7.0.
    """

    def __init__(self, *arguments: str, name: str = "redis") -> None:
        super().__init__(name)
        self._program = redis_program()
        self._arguments = arguments

    @property
    def url(self) -> str:
        """Return the URL for `Cache.from_url`."""
        return f"redis://{self.address}/0"

    def command(self) -> list[str]:
        fixed = ["--bind", HOST, "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(self.data)]
        return [str(self._program), *fixed, *self._arguments]

    def ready(self) -> bool:
        return f"\r\nprocess_id:{self.pid}\r\n" in self._information()

    def _information(self) -> str:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"INFO server\r\nQUIT\r\n")
                return connection.makefile("rb").read().decode()
        except OSError:
            return ""
