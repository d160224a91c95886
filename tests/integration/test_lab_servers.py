"""What every server of the lab has in common, and the waiting for conditions."""

import pytest

from leasecache.lab import MemcachedServer, ServerError, wait_until
from leasecache.lab import servers as lab_servers


class SilentServer(MemcachedServer):
    """A server that runs, has said something and never becomes ready."""

    def ready(self) -> bool:
        return not wait_until(lambda: "slab class" in self.log(), 60, "a word")


def test_waiting_returns_what_the_condition_did() -> None:
    """The first true value ends the waiting and is its result."""
    values = iter([None, 0, "", "found"])
    assert wait_until(lambda: next(values), 60, "a value") == "found"


def test_waiting_in_vain_says_for_what() -> None:
    """A deadline that passes is a TimeoutError with the name of the condition and the limit."""
    with pytest.raises(TimeoutError, match=r"^rain: not within 0\.01 s$"):
        wait_until(lambda: False, 0.01, "rain")


def test_a_server_that_never_answers_fails_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not ready in time is ended, and the error has the end of its log."""
    monkeypatch.setattr(lab_servers, "START_WITHIN", 0.1)
    server = SilentServer("-vv")
    with pytest.raises(ServerError, match=r"start of memcached: not within 0\.1 s; the end of its log:\n.*slab class"):
        server.start()
    assert not server.running


def test_starting_a_running_server_changes_nothing(memcached: MemcachedServer) -> None:
    """A second start leaves the process alone."""
    pid = memcached.pid
    assert memcached.start().pid == pid


def test_a_machine_without_free_ports_is_reported(monkeypatch: pytest.MonkeyPatch, memcached: MemcachedServer) -> None:
    """When every port of the range is taken the error names the range."""
    monkeypatch.setattr(lab_servers, "PORTS", range(memcached.port, memcached.port + 1))
    with pytest.raises(
        ServerError, match=rf"every port of 127.0.0.1 from {memcached.port} to {memcached.port} is taken"
    ):
        lab_servers.free_port()
