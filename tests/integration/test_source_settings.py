"""Connections to Postgres: what an administrator sets for applications does not reach the daemon."""

from contextlib import closing

import pytest

from leasecache.invalidation.source import Replication, ask, connect
from tests.fix_servers import PostgresPair

SETTINGS = {
    "default_transaction_isolation": ("serializable", "read committed"),
    "statement_timeout": ("250ms", "0"),
    "idle_session_timeout": ("250ms", "0"),
    "timezone": ("Asia/Tokyo", "UTC"),
    "datestyle": ("German", "ISO, MDY"),
    "bytea_output": ("escape", "hex"),
}


@pytest.mark.parametrize("where", ["primary", "standby"])
def test_settings_of_a_database(postgres_pair: PostgresPair, database: str, where: str) -> None:
    """A database for applications that are serializable and in haste: the daemon reads, and waits, all the same.

    Guard: without ours a standby refuses every query, and ends connections that wait for changes.
    """
    for name, (given, _) in SETTINGS.items():
        postgres_pair.primary.query(f"alter database {database} set {name} = '{given}'", dbname="postgres")
    postgres_pair.standby.catch_up()
    dsn = getattr(postgres_pair, where).dsn(database)
    with connect(dsn) as connection, closing(Replication(dsn)) as replication:
        ask(connection, "select pg_sleep(0.3)")
        for name, (_, ours) in SETTINGS.items():
            assert ask(connection, "select current_setting(%s)", name) == [(ours,)]
            assert replication.query(f"show {name}") == [(ours,)]
