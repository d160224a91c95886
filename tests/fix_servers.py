"""Servers. What many tests can share lives for the session; whatever a test breaks is its own."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from leasecache.lab import DataCentre, MemcachedServer, PostgresServer, RedisServer, two_data_centres


@dataclass(frozen=True)
class PostgresPair:
    """A primary and a standby that replays from it."""

    primary: PostgresServer
    standby: PostgresServer


@pytest.fixture
def memcached() -> Iterator[MemcachedServer]:
    """An empty memcached of the test's own."""
    with MemcachedServer() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """An empty Redis of the test's own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session", params=[16, 18], ids=["pg16", "pg18"])
def postgres_version(request: pytest.FixtureRequest) -> int:
    """Each major version of Postgres that the lab has."""
    return int(request.param)


@pytest.fixture(scope="session")
def postgres_pair(postgres_version: int) -> Iterator[PostgresPair]:
    """A primary and its standby for tests that neither stop them nor change their settings; see `database`."""
    with PostgresServer(postgres_version) as primary, primary.standby() as standby:
        yield PostgresPair(primary, standby)


@pytest.fixture
def database(postgres_pair: PostgresPair) -> Iterator[str]:
    """A new database on `postgres_pair`, there on both nodes; in the end it goes, with the slots made in it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres_pair.primary.query(f"create database {name}", dbname="postgres")
    postgres_pair.standby.catch_up()
    yield name
    for node in (postgres_pair.standby, postgres_pair.primary):
        node.drop_logical_slots(name)
    postgres_pair.primary.query(f"drop database {name} with (force)", dbname="postgres")


@pytest.fixture
def fresh_pair(postgres_version: int) -> Iterator[PostgresPair]:
    """A primary and its standby that the test may break."""
    with PostgresServer(postgres_version) as primary, primary.standby() as standby:
        yield PostgresPair(primary, standby)


@pytest.fixture
def data_centres(postgres_version: int) -> Iterator[tuple[DataCentre, DataCentre]]:
    """Two data centres that the test may break."""
    with two_data_centres(postgres_version) as both:
        yield both
