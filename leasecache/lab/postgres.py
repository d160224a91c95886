"""PostgreSQL: a primary, its standbys, and what tests do to them."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from signal import SIGINT, SIGQUIT
from typing import Any

import psycopg

from leasecache.errors import ConfigError
from leasecache.lab.install import postgres_programs
from leasecache.lab.servers import HOST, Server, ServerError, wait_until

SUPERUSER = "postgres"
DATABASE = "app"
WITHIN = 30.0  # s, for what Postgres does in milliseconds on an idle machine

Setting = str | int | float | bool

SETTINGS: Mapping[str, Setting] = {
    "listen_addresses": HOST,
    "wal_level": "logical",
    "max_wal_senders": 20,
    "max_replication_slots": 20,
    "max_connections": 200,
    "max_prepared_transactions": 20,
    "hot_standby": True,
    "hot_standby_feedback": True,
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, so that it goes with it even after SIGKILL
    "jit": False,
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %b ",
}


class PostgresServer(Server):
    """Run one PostgreSQL node; with `upstream`, a standby that streams from that node through a slot of its own.

    `version` is 16 or 18; a standby has its upstream's. `settings` go into its configuration file. With
    `fsync=False` a loss of the machine's power may lose data, a SIGKILL does not. Everybody on this machine can
    connect as superuser while it runs. Raises ConfigError when there is no such version.
    """

    polite = SIGINT  # "fast": ends sessions, waits until the standbys have everything
    abrupt = SIGQUIT  # "immediate"

    def __init__(
        self,
        version: int = 18,
        *,
        name: str = "primary",
        upstream: "PostgresServer | None" = None,
        settings: Mapping[str, Setting] | None = None,
        fsync: bool = False,
    ) -> None:
        super().__init__(name)
        self.version = version
        self.upstream = upstream
        self._programs = postgres_programs(version)
        self._settings: dict[str, Setting] = {**SETTINGS, "cluster_name": name, "fsync": fsync, **(settings or {})}

    def standby(self, name: str = "standby", *, settings: Mapping[str, Setting] | None = None) -> "PostgresServer":
        """Return a standby of this node, not started yet; `name` is also its application_name and slot."""
        return PostgresServer(
            self.version, name=name, upstream=self, settings={**self._inherited(), **(settings or {})}
        )

    def dsn(self, dbname: str = DATABASE, *, user: str = SUPERUSER) -> str:
        """Return the connection URL of the superuser, or of another role."""
        return f"postgresql://{user}@{self.address}/{dbname}"

    def connect(self, dbname: str = DATABASE, **options: Any) -> psycopg.Connection[Any]:
        """Open a connection in autocommit mode; `options` are those of `psycopg.connect`."""
        return psycopg.connect(self.dsn(dbname), **{"autocommit": True, **options})

    def query(self, statement: str, *parameters: object, dbname: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run one statement on a new connection and return its rows, none for a statement without any.

        `parameters` fill the %s of the statement; without any, a % stands for itself.
        """
        with self.connect(dbname) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *parameters: object, dbname: str = DATABASE) -> Any:
        """Run one statement on a new connection and return the first column of its first row."""
        return self.query(statement, *parameters, dbname=dbname)[0][0]

    def configure(self, **settings: Setting) -> None:
        """Change settings of the running server and wait until new sessions have them.

        Settings that only a restart changes wait for `restart`. Raises ConfigError for a value that Postgres refuses;
        the old settings are kept then.
        """
        old, self._settings = self._settings, {**self._settings, **settings}
        self._write_settings()
        if refused := self._refused_settings():
            self._settings = old
            self._write_settings()
            raise ConfigError(f"{self.name} refuses {refused}")
        self._reload()

    def delay_replay(self, seconds: float) -> None:
        """Let this standby replay commits only when they are `seconds` old; 0 ends the delay."""
        self.configure(recovery_min_apply_delay=f"{round(seconds * 1000)}ms")

    def synchronise(self, *standbys: str, method: str = "FIRST") -> None:
        """Let commits wait until all these standbys have flushed them; without arguments they wait for none.

        `method` is "FIRST" or "ANY"; the number is that of the names.
        """
        names = ", ".join(f'"{name}"' for name in standbys)
        self.configure(synchronous_standby_names=f"{method} {len(standbys)} ({names})" if standbys else "")

    def current_lsn(self) -> str:
        """Return the position up to which this node has written, or as a standby has replayed, its log."""
        return str(
            self.value(
                "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end"
            )
        )

    def wait_replayed(self, lsn: str, timeout: float = WITHIN) -> None:
        """Wait until this standby shows everything up to `lsn`; raises TimeoutError after `timeout` seconds."""
        with self.connect() as connection:
            replayed = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
            wait_until(
                lambda: (connection.execute(replayed, [lsn]).fetchone() or [False])[0],
                timeout,
                f"replay of {lsn} on {self.name}",
            )

    def catch_up(self, timeout: float = WITHIN) -> None:
        """Wait until this standby shows what its upstream has written so far."""
        self.wait_replayed(self._source().current_lsn(), timeout)

    def _source(self) -> "PostgresServer":
        if self.upstream is None:
            raise ServerError(f"{self.name} is no standby")
        return self.upstream

    def promote(self) -> None:
        """Make this standby a primary and wait until it takes writes."""
        self.value("select pg_promote(true, %s)", round(WITHIN))
        self.upstream = None
        wait_until(lambda: not self.value("select pg_is_in_recovery()"), WITHIN, f"promotion of {self.name}")

    def follow(self, upstream: "PostgresServer") -> None:
        """Point this running standby to another node, such as a promoted one, through a new slot there."""
        self.upstream = upstream
        self._create_slot_upstream()
        self._write_settings()
        self._reload()

    def create_logical_slot(self, slot: str, *, plugin: str = "pgoutput", dbname: str = DATABASE) -> str:
        """Create a logical slot here and return its consistent point.

        On a standby that waits for a record which an idle primary does not write by itself, so we ask for it.
        """
        create = "select lsn from pg_create_logical_replication_slot(%s, %s)"
        limit = f"-c statement_timeout={round(WITHIN)}s"
        with self.connect(dbname, options=limit) as connection, ThreadPoolExecutor(max_workers=1) as pool:
            cursor = pool.submit(connection.execute, create, [slot, plugin])
            wait_until(lambda: self._logged_snapshot(cursor), WITHIN, f"creation of slot {slot} on {self.name}")
            return str(cursor.result().fetchall()[0][0])

    def drop_logical_slots(self, dbname: str = DATABASE) -> None:
        """Drop the logical slots of one database on this node, together with the sessions that stream from them."""
        wait_until(lambda: self._dropped_slots(dbname), WITHIN, f"end of the slots of {dbname} on {self.name}")

    def _dropped_slots(self, dbname: str) -> bool:
        slots = "from pg_replication_slots where database = %s"
        self.query(f"select pg_terminate_backend(active_pid, 5000) {slots} and active", dbname, dbname="postgres")
        try:
            self.query(f"select pg_drop_replication_slot(slot_name) {slots}", dbname, dbname="postgres")
        except psycopg.errors.ObjectInUse:  # whoever streamed from it was back already
            return False
        return True

    def _logged_snapshot(self, created: Future[Any]) -> bool:
        if not created.done() and self.upstream is not None:
            self.upstream.query("select pg_log_standby_snapshot()")
        return created.done()

    def command(self) -> list[str]:
        self._write_settings()
        file = self.directory / "postgresql.conf"
        return [str(self._programs / "postgres"), "-D", str(self.data), f"--config-file={file}", "-p", str(self.port)]

    def ready(self) -> bool:
        """Read line 8 of postmaster.pid, as pg_ctl does: it is "ready" when sessions are let in."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def prepare(self) -> None:
        if self.upstream is None:
            self._initialise()
        else:
            self._create_slot_upstream()
            self._copy(self.upstream)

    def _initialise(self) -> None:
        """Make a new cluster with the database; initdb takes 0.4 s, and gives a system identifier of its own."""
        options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        self.run([str(self._programs / "initdb"), "-D", str(self.data), *options])
        single = [str(self._programs / "postgres"), "--single", "-F", "-D", str(self.data), "postgres"]
        self.run(single, stdin=f"create database {DATABASE}\n")

    def _copy(self, upstream: "PostgresServer") -> None:
        """Copy the running upstream and mark the copy as a standby."""
        source = ["-d", upstream.dsn("postgres"), "-S", self.name]
        options = ["-X", "stream", "-c", "fast", "--no-sync", "--no-manifest"]
        self.run([str(self._programs / "pg_basebackup"), "-D", str(self.data), *source, *options])
        self.run(["/bin/sh", "-c", "echo > standby.signal"])

    def _create_slot_upstream(self) -> None:
        self._source().query(
            "select pg_create_physical_replication_slot(%s, true) "
            "where not exists (select from pg_replication_slots where slot_name = %s)",
            self.name,
            self.name,
        )

    def _inherited(self) -> dict[str, Setting]:
        """Return what a standby must or should have like its upstream."""
        local = {"cluster_name", "synchronous_standby_names", "recovery_min_apply_delay"}
        return {name: setting for name, setting in self._settings.items() if name not in local}

    def _write_settings(self) -> None:
        """Write the whole configuration file; a rename, so that the server never reads half of it."""
        settings = {"unix_socket_directories": str(self.data), **self._settings}
        if self.upstream is not None:
            settings["primary_conninfo"] = f"{self.upstream.dsn('postgres')}?application_name={self.name}"
            settings["primary_slot_name"] = self.name
        draft = self.directory / "postgresql.conf.draft"
        draft.write_text("".join(f"{name} = {_quoted(setting)}\n" for name, setting in settings.items()))
        draft.chmod(0o644)
        draft.rename(self.directory / "postgresql.conf")

    def _refused_settings(self) -> str:
        """Let Postgres judge the file that it has not loaded; what only a restart can change counts as good."""
        return str(
            self.value(
                "select coalesce(string_agg(format('%s = %s: %s', name, file.setting, error), '; '), '') "
                "from pg_file_settings as file left join pg_settings using (name) "
                "where error is not null and context is distinct from 'postmaster'"
            )
        )

    def _reload(self) -> None:
        """Let the server load its file again; a new session knows when its postmaster last did."""
        loaded = self.value("select pg_conf_load_time()")
        self.query("select pg_reload_conf()")
        wait_until(lambda: self.value("select pg_conf_load_time()") > loaded, WITHIN, f"reload of {self.name}")


def _quoted(setting: Setting) -> str:
    """Write a value as the configuration file wants it."""
    text = ("off", "on")[setting] if isinstance(setting, bool) else str(setting)
    return "'" + text.replace("'", "''") + "'"
