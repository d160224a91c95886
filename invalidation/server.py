"""The status server: a few pages over HTTP."""

import socket
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from leasecache.errors import ConfigError
from leasecache.invalidation.answers import answer
from leasecache.invalidation.status import Monitor


class StatusServer:
    """Serve the state of a monitor from threads that end with the process."""

    def __init__(self, address: tuple[str, int], monitor: Monitor) -> None:
        """Bind `address`; port 0 takes any. Raises ConfigError when it cannot be bound."""
        handler = type("Handler", (_Handler,), {"monitor": monitor})
        try:
            self._server = _Server(address, handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"status.listen: cannot listen on {address[0]}:{address[1]}: {error}") from None
        self.address = f"{self._server.server_address[0]!s}:{self._server.server_address[1]}"

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, name="leasecache-status", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingTCPServer):  # HTTPServer would ask the name service for its own name
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _Handler(BaseHTTPRequestHandler):
    monitor: Monitor
    timeout = 10

    def do_GET(self) -> None:
        page = answer(self.path.partition("?")[0], self.monitor)
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep requests out of the daemon's log."""
