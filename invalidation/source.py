"""Connections to Postgres: plain ones for questions, and the replication stream as a non-blocking pipe of frames."""

import select
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg import conninfo, pq

from leasecache.errors import ConfigError, GapError, SourceError
from leasecache.invalidation.lsn import format_lsn
from leasecache.invalidation.walker import Frames

Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

CONNECT_TIMEOUT = 5  # s
TCP_TIMEOUT = 30_000  # ms that sent data may remain unacknowledged by the server's kernel
# Makes the text of every type canonical, so that it renders to the same key as the application's value; and what the
# database or the role sets for applications is not for us: a standby refuses serializable, an index takes its time.
_OPTIONS = (
    "-c datestyle=ISO -c timezone=UTC -c extra_float_digits=3 -c bytea_output=hex "
    r"-c default_transaction_isolation=read\ committed -c statement_timeout=0"
)
_IDLE_TIMEOUT_SINCE = 140000  # server version; ours wait for days
_FIXES = (  # what libpq says → what is wrong and what to do
    ("connection refused", "connection refused; is Postgres running there?"),
    ("no such file", "no socket there; is Postgres running there?"),
    ("timeout expired", "no answer in time; is the address right and the network open?"),
    ("could not translate host name", "the host name is unknown; check the dsn"),
    ("failed to resolve host", "the host name is unknown; check the dsn"),
    ("no password supplied", "a password is needed; put it into the dsn, ~/.pgpass or PGPASSWORD"),
    ("password authentication failed", "the password is wrong; check the dsn, ~/.pgpass or PGPASSWORD"),
    ("due to lock timeout", "a table is locked by somebody else; try again later"),
    ("server does not support ssl", "the server does not speak TLS; turn ssl on there"),
    ("certificate verify failed", "its certificate is not from the authority in sslrootcert; check the dsn"),
    ("does not match host name", "its certificate is for another name; name the host in the dsn as it does"),
    ("alert certificate required", "the server wants a client certificate; add sslcert and sslkey to the dsn"),
    ("root certificate file", "the file of sslrootcert is not there or cannot be read; check the dsn"),
    ("requires a valid client certificate", "the server wants a client certificate; add sslcert and sslkey to the dsn"),
    ("certificate authentication failed", "the client certificate is for another user; check user and sslcert"),
    ("no encryption", "the server's pg_hba.conf does not admit this user without TLS; add sslmode=verify-full"),
    ('fatal: role "', "there is no such role, or it may not log in; docs/operations/role.sql makes the daemon's"),
    ('fatal: database "', "there is no such database, or it takes no connections; check the dsn"),
    ("no pg_hba.conf entry", "the server's pg_hba.conf does not admit this user; add an entry"),
)
_ENDED = -1  # what libpq says instead of a frame; less is an error, 0 is nothing yet
_IN_USE = "55006"  # SQLSTATE object_in_use
_UNDEFINED = "42704"  # SQLSTATE undefined_object


class SlotInUseError(SourceError):
    """Another process streams from the slot; Postgres admits one."""


class UndecodableError(SourceError):
    """The log holds changes that cannot be decoded: when they were made, there was no publication. Up to 17."""


def redact(dsn: str) -> str:
    """Return where `dsn` points, fit to be shown: host, port, database, user, and never a password."""
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        return "(unreadable dsn)"
    shown = ("host", "hostaddr", "port", "dbname", "user")
    return " ".join(f"{name}={parts[name]}" for name in shown if parts.get(name)) or "(local defaults)"


def address(dsn: str) -> str:
    """Return host and port of a readable `dsn`, the short name of a node."""
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        return "(unreadable dsn)"
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"{host}:{parts.get('port') or 5432}"


def check_dsn(key: str, dsn: str) -> None:
    """Raise ConfigError when `dsn`, the value of a setting, cannot be read; the message does not quote it."""
    try:
        conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:  # whose message may quote a password
        raise ConfigError(
            f"{key} is not a Postgres connection string; write postgresql://user@host:port/database"
        ) from None


def readdressed(dsn: str, *, host: str, port: int) -> str:
    """Return `dsn` pointing to another server, with everything else kept."""
    return conninfo.make_conninfo(dsn, host=host, port=port)


def connect(dsn: str, *, replication: bool = False) -> Connection:
    """Connect in autocommit mode, with canonical text output.

    Raises ConfigError when `dsn` cannot be read, SourceError in one line when the server cannot be reached.
    """
    check_dsn("a dsn", dsn)
    parts = conninfo.conninfo_to_dict(dsn)
    parts["options"] = f"{parts.get('options') or ''} {_OPTIONS}".strip()
    parts["client_encoding"] = "UTF8"
    parts.setdefault("connect_timeout", CONNECT_TIMEOUT)
    parts.setdefault("tcp_user_timeout", TCP_TIMEOUT)
    parts.setdefault("application_name", "leasecache")
    if replication:
        parts["replication"] = "database"
    try:
        return _patient(psycopg.connect(conninfo.make_conninfo("", **parts), autocommit=True))
    except psycopg.Error as error:
        raise SourceError(f"cannot connect to Postgres at {redact(dsn)}: {_reason(error)}") from None


def _patient(connection: Connection) -> Connection:
    """Let the server keep the connection however long nothing is asked."""
    try:
        if connection.info.server_version >= _IDLE_TIMEOUT_SINCE:
            connection.execute("set idle_session_timeout = 0")
    except psycopg.Error:
        connection.close()
        raise
    return connection


def ask(connection: Connection, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query. Raises SourceError in one line."""
    try:
        return connection.execute(sql.encode(), parameters or None).fetchall()
    except psycopg.Error as error:
        raise SourceError(f"the source refused a query: {_reason(error)}") from None


def execute(connection: Connection, sql: str) -> None:
    """Run a statement that returns nothing of interest. Raises SourceError in one line."""
    try:
        connection.execute(sql.encode())
    except psycopg.Error as error:
        raise SourceError(f"{sql.split(chr(10))[0][:120]}: {_reason(error)}") from None


def _reason(error: psycopg.Error) -> str:
    text = " ".join(str(error).split())
    for symptom, reason in _FIXES:
        if symptom in text.lower():
            return reason
    return text.removeprefix("connection failed: ") or type(error).__name__


class Replication:
    """One COPY BOTH conversation with a walsender, as frames. Nothing here waits, `start` and `stop` apart."""

    def __init__(self, dsn: str) -> None:
        """Open a replication connection. Raises SourceError when that fails."""
        self._connection = connect(dsn, replication=True)
        self._pq = self._connection.pgconn

    def query(self, sql: str) -> list[tuple[str | None, ...]]:
        """Return the rows of a query, as text, before the stream is started."""
        result = self._run(sql)
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise SourceError(f"the source refused a query: {_first_line(result)}")
        return [tuple(_text(result.get_value(i, j)) for j in range(result.nfields)) for i in range(result.ntuples)]

    def start(self, slot: str, publication: str) -> None:
        """Start streaming where the slot stands.

        Raises SlotInUseError, GapError when the slot is gone or has lost changes, SourceError on any other refusal.
        """
        states = self.query(f"select wal_status from pg_replication_slots where slot_name = '{slot}'")
        if not states or states[0][0] == "lost":
            fault = "has lost changes; drop it," if states else "is gone;"
            raise GapError(f"slot {slot!r} {fault} clear the cache, then run `leasecache setup --apply`")
        options = f"proto_version '1', publication_names '{_quoted(publication)}', messages 'true'"
        command = f'START_REPLICATION SLOT "{slot}" LOGICAL {format_lsn(0)} ({options})'
        result = self._run(command)
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise _refusal(result, slot)
        self._pq.nonblocking = 1

    def _run(self, command: str) -> "pq.abc.PGresult":
        try:
            return self._pq.exec_(command.encode())
        except psycopg.Error as error:
            raise SourceError(f"the stream broke: {_reason(error)}") from None

    @property
    def pid(self) -> int:
        """The server's process at the other end."""
        return self._pq.backend_pid

    @property
    def socket(self) -> int:
        """The descriptor to wait on."""
        return self._pq.socket

    def read(self, limit: int) -> Sequence[bytes]:
        """Return the frames that are there, at most `limit`. Raises SourceError when the conversation has ended."""
        frames = Frames()
        known = -1
        try:
            while known < len(frames) < limit:  # libpq takes 16 KiB at a time
                known = len(frames)
                self._pq.consume_input()
                frames.collect(self._pq, limit)
                if frames.status == _ENDED:
                    raise _ending(self._pq.get_result())
                if frames.status < _ENDED:
                    raise SourceError(f"the stream broke: {' '.join(self._pq.get_error_message().split())}")
        except psycopg.Error as error:
            raise SourceError(f"the stream broke: {_reason(error)}") from None
        return frames

    def send(self, frame: bytes) -> None:
        """Queue a frame and send what the socket takes."""
        try:
            self._pq.put_copy_data(frame)
        except psycopg.Error as error:
            raise SourceError(f"the stream broke: {_reason(error)}") from None
        self.flush()

    def flush(self) -> bool:
        """Send what the socket takes; return whether something is still queued."""
        try:
            return self._pq.flush() == 1
        except psycopg.Error as error:
            raise SourceError(f"the stream broke: {_reason(error)}") from None

    def stop(self, timeout: float) -> None:
        """End the conversation so that the server has read everything sent before; give up after `timeout` s."""
        deadline = time.monotonic() + timeout
        ready = select.poll()
        ready.register(self.socket, select.POLLIN)
        try:
            self._pq.put_copy_end()
            while self.flush() or not self._ended():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                ready.poll(min(left, 0.05) * 1000)
                self._pq.consume_input()
        except (psycopg.Error, SourceError):
            return

    def _ended(self) -> bool:
        size = 1
        while size > 0:
            size, _ = self._pq.get_copy_data(1)
        return size < 0

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _refusal(result: "pq.abc.PGresult | None", slot: str) -> SourceError:
    message = _first_line(result)
    state = _text(result.error_field(pq.DiagnosticField.SQLSTATE)) if result is not None else None
    if state == _IN_USE:
        return SlotInUseError(f"slot {slot!r} is in use: {message}")
    return SourceError(f"cannot stream from slot {slot!r}: {message}")


def _ending(result: "pq.abc.PGresult | None") -> SourceError:
    state = None if result is None else _text(result.error_field(pq.DiagnosticField.SQLSTATE))
    kind = UndecodableError if state == _UNDEFINED else SourceError
    return kind(f"the source ended the stream: {_first_line(result)}")


def _first_line(result: "pq.abc.PGresult | None") -> str:
    if result is None:
        return "no reason given"
    message = _text(result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY))
    return message or "the server closed it"


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def _quoted(name: str) -> str:
    # the option is a string literal that holds a list of identifiers
    return '"' + name.replace('"', '""').replace("'", "''") + '"'
