"""The lab's Postgres nodes do what the tests of the library take for granted."""

from tests.fix_servers import PostgresPair


def test_a_standby_replays_what_its_primary_commits(postgres_pair: PostgresPair, database: str) -> None:
    """A committed row shows on the standby once the primary's position is replayed."""
    postgres_pair.primary.query("create table t as select 7 as v", dbname=database)
    postgres_pair.standby.wait_replayed(postgres_pair.primary.current_lsn())
    assert postgres_pair.standby.value("select v from t", dbname=database) == 7
