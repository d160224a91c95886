"""The herd on a machine that may be busy: no exchange is given up after a second."""

from typing import Any

from pymemcache.client.base import PooledClient

from loadtests import plain
from loadtests.locustfile import Reader, Writer
from tests.fix_patience import PATIENT, be_patient

__all__ = ["Reader", "Writer"]


def patient(address: Any, **options: Any) -> PooledClient:
    """Return a client of those without leases."""
    return PooledClient(address, **{**options, "timeout": PATIENT, "connect_timeout": PATIENT})


plain.PooledClient = patient  # type: ignore[misc,assignment]
be_patient()
