"""Under gevent a cache that waits lets other greenlets run, whenever the standard library was patched."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from leasecache import _accel
from leasecache.lab import MemcachedServer
from leasecache.lab.memcached import Certificate
from leasecache.stores.memcached import MemcachedNode

ORDERS = ["patched-first", "declared-first"]


def run(case: str, order: str, server: MemcachedServer, options: str = "") -> Any:
    """Run a case in a process of its own: monkey-patching cannot be undone."""
    url = server.url + options
    program = [sys.executable, "-m", "tests.integration.greenlets", case, order, url, str(server.pid)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("order", ORDERS)
def test_herd_of_greenlets_loads_once(order: str, memcached: MemcachedServer) -> None:
    """Two hundred greenlets on one cold key, over eight connections, run one loader, and all get its value."""
    assert run("herd", order, memcached) == {"values": [1], "loads": 1}


@pytest.mark.parametrize("order", ORDERS)
def test_slow_cache_does_not_block_other_greenlets(order: str, memcached: MemcachedServer) -> None:
    """While a call waits for a cache that does not answer, another greenlet keeps its pace."""
    seen = run("stall", order, memcached)
    assert seen["value"] == 1
    assert seen["blocked"] > 2  # of the 3 s that an exchange may take
    assert seen["ticks"] > 5  # of some 300 on an idle machine; a greenlet that is held up makes one


@pytest.mark.parametrize("order", ORDERS)
def test_interrupted_calls_leave_the_pool_usable(order: str, memcached: MemcachedServer) -> None:
    """A gevent.Timeout amid an exchange costs that connection only: later calls are right, and none lacks one."""
    assert run("interrupt", order, memcached) == {"interrupted": True, "right": True, "states": ["fresh"]}


@pytest.mark.parametrize("order", ORDERS)
def test_background_refresh_runs_in_greenlets(order: str, memcached: MemcachedServer) -> None:
    """Stale values are served at once, and one load each replaces them, without stopping the other greenlets."""
    assert run("refresh", order, memcached) == {"states": ["stale"], "loads": 24}


@pytest.mark.parametrize("order", ORDERS)
def test_tls_under_gevent(order: str, tmp_path: Path) -> None:
    """Over TLS, too, a herd of greenlets loads once, and a cache that does not answer does not block the others."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    certificate = Certificate(tmp_path / "chain.pem", tmp_path / "key.pem")
    with MemcachedServer(certificate=certificate) as server:
        options = f"?ca={tmp_path}/ca.pem"
        assert run("herd", order, server, options) == {"values": [1], "loads": 1}
        seen = run("stall", order, server, options)
        assert seen["value"] == 1
        assert seen["ticks"] > 5


def test_plain_sockets_get_the_compiled_wire(memcached: MemcachedServer) -> None:
    """Without gevent the node talks over the compiled wire, where there is one."""
    node = MemcachedNode(memcached.address)
    wire = node._wire(socket.create_connection(("127.0.0.1", memcached.port)))
    try:
        assert type(wire) is _accel.Wire
    finally:
        wire.close()
