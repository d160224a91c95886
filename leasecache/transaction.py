"""The application's own transaction: running a commit message on whatever connection it has, sync or async.

Connections are known by what they offer, so that no driver is imported.
"""

import inspect
from collections.abc import Generator
from typing import Any

from leasecache.errors import ConfigError
from leasecache.messages import CommitMessage

_MARKERS = {"numeric_dollar": "$1", "format": "%s", "pyformat": "%s"}  # SQLAlchemy's paramstyle → parameter


def send(conn: Any, message: CommitMessage) -> None:
    """Run `message` in the transaction of `conn`; its open cursors keep their results.

    `conn` is a psycopg 2 or 3 connection or cursor, a Django connection, or an SQLAlchemy Connection or Session.
    Raises ConfigError on anything else and on an async one, and what the driver raises.
    """
    steps = _steps(conn, message)
    result = None
    while True:
        try:
            result = steps.send(result)
        except StopIteration:
            return
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise ConfigError(f"{_name(conn)} is asynchronous; await invalidate_on_commit of an AsyncCache's function")


async def asend(conn: Any, message: CommitMessage) -> None:
    """Run `message` in the transaction of `conn`, which may be the async kind of what `send` takes."""
    steps = _steps(conn, message)
    result = None
    while True:
        try:
            result = steps.send(result)
        except StopIteration:
            return
        if inspect.isawaitable(result):
            result = await result


def _steps(conn: Any, message: CommitMessage) -> Generator[Any, Any, None]:
    """Yield what each call returned; resumed with that, awaited if need be."""
    sql, parameters = message
    if hasattr(conn, "get_bind"):  # SQLAlchemy's Session
        conn = yield conn.connection()
    elif hasattr(conn, "fetchone") and hasattr(conn, "connection"):  # a cursor, which may still be read from
        conn = conn.connection
    if hasattr(conn, "exec_driver_sql"):  # SQLAlchemy's Connection
        yield conn.exec_driver_sql(sql.replace("%s", _marker(conn.dialect.paramstyle)), parameters)
    elif hasattr(conn, "pgconn"):  # psycopg 3
        yield conn.execute(sql, parameters)
    elif callable(getattr(conn, "cursor", None)) and not hasattr(conn, "execute"):  # psycopg 2, Django
        with conn.cursor() as cursor:
            cursor.execute(sql, parameters)
    else:
        raise ConfigError(
            f"{_name(conn)} is no connection of psycopg, Django or SQLAlchemy; "
            "run the sql and parameters of cache.commit_message(…) in its transaction"
        )


def _marker(paramstyle: str) -> str:
    try:
        return _MARKERS[paramstyle]
    except KeyError:
        raise ConfigError(f"a driver of paramstyle {paramstyle!r} is not known; run cache.commit_message(…)") from None


def _name(conn: Any) -> str:
    return f"{type(conn).__module__}.{type(conn).__qualname__}"
