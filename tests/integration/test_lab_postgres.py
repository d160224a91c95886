"""The lab's Postgres nodes do what the tests of the library take for granted."""

import subprocess
import threading

import psycopg
import pytest

from leasecache.errors import ConfigError
from leasecache.lab import DataCentre, PostgresServer, ServerError, wait_until
from leasecache.lab.warden import tree
from tests.fix_servers import PostgresPair


def shared_memory() -> set[str]:
    """List the identifiers of the System V segments of this machine, which ipcs has in its second column."""
    lines = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[1] for line in lines if len(line.split()) > 1}


def test_a_standby_replays_what_its_primary_commits(postgres_pair: PostgresPair, database: str) -> None:
    """A committed row shows on the standby once the primary's position is replayed."""
    postgres_pair.primary.query("create table t as select 7 as v", dbname=database)
    postgres_pair.standby.wait_replayed(postgres_pair.primary.current_lsn())
    assert postgres_pair.standby.value("select v from t", dbname=database) == 7


def test_the_pair_has_the_asked_version_and_can_decode(postgres_pair: PostgresPair, postgres_version: int) -> None:
    """Both nodes are of the asked major version, keep a logical log and feed back their snapshots."""
    for node in (postgres_pair.primary, postgres_pair.standby):
        assert node.value("show server_version_num").startswith(str(postgres_version))
        assert node.value("show wal_level") == "logical"
        assert node.value("show hot_standby_feedback") == "on"
    slot = postgres_pair.primary.query(
        "select slot_name, active from pg_replication_slots where slot_type = 'physical'"
    )
    assert slot == [("standby", True)]


def test_logical_slots_on_either_node_go_with_their_database(postgres_pair: PostgresPair, database: str) -> None:
    """A slot on an idle standby is created at once, and dropping the database's slots leaves those of others."""
    for node in (postgres_pair.primary, postgres_pair.standby):
        other = f"other_{node.name}"
        node.create_logical_slot(other)
        assert node.create_logical_slot(f"slot_{node.name}", dbname=database) > "0/0"
        node.drop_logical_slots(database)
        slots = node.query("select slot_name from pg_replication_slots where slot_type = 'logical'")
        node.drop_logical_slots()
        assert slots == [(other,)]


def test_replay_is_delayed_and_released_live(fresh_pair: PostgresPair) -> None:
    """A delayed standby shows a commit only after the delay, or when the delay is taken away."""
    fresh_pair.standby.delay_replay(600)
    fresh_pair.primary.query("create table t ()")
    with pytest.raises(TimeoutError, match=r"replay of .* on standby: not within 0.2 s"):
        fresh_pair.standby.catch_up(timeout=0.2)
    fresh_pair.standby.delay_replay(0)
    fresh_pair.standby.catch_up()


def test_a_synchronous_standby_holds_commits_up_until_it_resumes(fresh_pair: PostgresPair) -> None:
    """A commit waits while its synchronous standby is paused, invisible to others, and ends when it goes on."""
    primary, standby = fresh_pair.primary, fresh_pair.standby
    primary.query("create table t ()")
    primary.synchronise(standby.name)
    wait_until(lambda: primary.value("select sync_state from pg_stat_replication") == "sync", 60, "synchronous standby")
    standby.pause()
    commit = threading.Thread(target=primary.query, args=["insert into t default values"])
    commit.start()
    waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    wait_until(lambda: primary.value(waits) == 1, 60, "a commit that waits")
    assert primary.value("select count(*) from t") == 0
    standby.resume()
    commit.join(60)
    assert primary.value("select count(*) from t") == 1
    primary.synchronise()
    assert primary.value("show synchronous_standby_names") == ""


def test_a_killed_primary_comes_back_with_what_was_committed(fresh_pair: PostgresPair) -> None:
    """After SIGKILL of all its processes a node recovers on the same port, and its standby goes on following."""
    primary = fresh_pair.primary
    primary.query("create table t ()")
    port, processes = primary.port, [process.pid for process in tree(primary.pid)]
    primary.kill()
    assert not primary.running
    assert len(processes) > 5
    with pytest.raises(psycopg.OperationalError):
        primary.connect()
    primary.start()
    assert primary.port == port
    primary.query("insert into t default values")
    fresh_pair.standby.catch_up()
    assert fresh_pair.standby.value("select count(*) from t") == 1


def test_a_primary_is_no_standby(postgres_pair: PostgresPair) -> None:
    """What only a standby can do is refused by a primary."""
    with pytest.raises(ServerError, match="primary is no standby"):
        postgres_pair.primary.catch_up()


def test_durability_can_be_asked_for() -> None:
    """A node syncs its files when it is told to, and does not otherwise."""
    for fsync, shown in ((True, "on"), (False, "off")):
        with PostgresServer(fsync=fsync) as server:
            assert server.value("show fsync") == shown


def test_a_restart_loads_what_only_a_restart_can_change(fresh_pair: PostgresPair) -> None:
    """A setting of the postmaster's is accepted live and holds after a restart."""
    standby = fresh_pair.standby
    standby.configure(max_connections=300, work_mem="9MB")
    assert (standby.value("show max_connections"), standby.value("show work_mem")) == ("200", "9MB")
    standby.restart()
    assert standby.value("show max_connections") == "300"


def test_refused_settings_change_nothing(postgres_version: int) -> None:
    """A value that Postgres refuses is an error that names it, and the rest of the call has no effect either."""
    with PostgresServer(postgres_version) as primary:
        with pytest.raises(ConfigError, match="primary refuses work_mem = lots"):
            primary.configure(work_mem="lots", jit=True)
        primary.configure(work_mem="4MB")
        assert primary.value("show jit") == "off"


def test_a_promoted_standby_takes_over_with_the_others_behind_it(
    data_centres: tuple[DataCentre, DataCentre], postgres_version: int
) -> None:
    """After the primary's death a standby is promoted, and another one follows it without a new copy."""
    primary, standby = (centre.postgres for centre in data_centres)
    with primary.standby("dc3") as third:
        primary.query("create table t ()")
        standby.catch_up()
        third.catch_up()
        primary.kill()
        standby.promote()
        third.follow(standby)
        standby.query("insert into t default values")
        third.catch_up()
        assert third.value("select count(*) from t") == 1
        standby.restart()
        assert standby.value("select pg_is_in_recovery()") is False


def test_two_primaries_are_different_systems(postgres_pair: PostgresPair, postgres_version: int) -> None:
    """Each primary has a system identifier of its own, its standby has the same one."""
    identify = "select system_identifier from pg_control_system()"
    with PostgresServer(postgres_version) as stranger:
        identifiers = [node.value(identify) for node in (postgres_pair.primary, postgres_pair.standby, stranger)]
    assert identifiers[0] == identifiers[1] != identifiers[2]


def test_a_killed_postgres_leaves_no_shared_memory() -> None:
    """The System V segment that survives SIGKILL goes when the server is closed."""
    with PostgresServer() as server:
        segment = (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        server.kill()
        assert segment in shared_memory()
    assert segment not in shared_memory()


def test_a_postgres_that_cannot_start_says_why() -> None:
    """The error of a failed start has the end of the log, and nothing stays behind."""
    server = PostgresServer(settings={"shared_buffers": "none"})
    with pytest.raises(ServerError, match=r'primary did not start.*\n.*invalid value for parameter "shared_buffers"'):
        server.start()
    with pytest.raises(ServerError, match="has not been started"):
        _ = server.directory


def test_a_standby_of_a_dead_primary_does_not_start() -> None:
    """A standby whose upstream is gone gives an error and can be started later."""
    with PostgresServer() as primary:
        standby = primary.standby("late")
        primary.kill()
        with pytest.raises(psycopg.OperationalError):
            standby.start()
        primary.start()
        with standby:
            standby.catch_up()


def test_an_unknown_version_is_refused() -> None:
    """A version that the wheel does not carry is an error that names those it does."""
    with pytest.raises(ConfigError, match="the lab has Postgres 16 and 18, not 17"):
        PostgresServer(17)
