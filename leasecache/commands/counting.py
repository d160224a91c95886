"""`leasecache counters`: the SQL of a counter, its drift, and its repair under live traffic."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasecache.commands import DONE, FOUND, AsJson, print_table

if TYPE_CHECKING:
    import psycopg

    from leasecache.counters import Counter, Drift

app = typer.Typer(help="Look after a counter that counter(...) declares.", no_args_is_help=True)

Target = Annotated[
    str, typer.Argument(metavar="MODULE:NAME", help="Where the application keeps what counter() gave it.")
]
Dsn = Annotated[
    str | None,
    typer.Option(envvar="LEASECACHE_DSN", help="The database; without it, what PGHOST, PGDATABASE … say."),
]

_LIBPQ = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")  # one of them has to say which database is meant
_ADDRESS = ("host", "hostaddr", "port", "dbname", "user")
_FIXES = {  # SQLSTATE → what to do
    "42P01": "apply the counter with `leasecache counters sql {target}`",
    "42703": "apply the counter with `leasecache counters sql {target}`",
    "42501": "connect as the owner of the counter, or grant it",
    "25006": "connect to the primary",
}


@app.command()
def sql(target: Target) -> None:
    """Print the DDL of a counter: its table, triggers and backfill. To run it again is harmless."""
    typer.echo(_counter(target).sql())


@app.command()
def verify(target: Target, dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Compare every count with the rows that it counts. Exit code 1 = some are wrong."""
    counter = _counter(target)
    with _connection(target, dsn) as connection, _progress(f"verifying {counter.table}") as progress:
        drifts = counter.verify(connection, progress=progress)
    _report(drifts, as_json, "every count is exact")
    raise typer.Exit(FOUND if drifts else DONE)


@app.command()
def repair(target: Target, dsn: Dsn = None, as_json: AsJson = False) -> None:
    """Add to each wrong count what it lacks, while others write, and print what was mended."""
    counter = _counter(target)
    with _connection(target, dsn) as connection, _progress(f"repairing {counter.table}") as progress:
        drifts = counter.repair(connection, progress=progress)
    _report(drifts, as_json, "every count was exact")


def _counter(target: str) -> "Counter":
    from leasecache.counters import Counter
    from leasecache.errors import ConfigError
    from leasecache.target import import_attribute

    found = import_attribute(target)
    if not isinstance(found, Counter):
        raise ConfigError(f"{target} is no Counter but of type {type(found).__name__}; name what counter(...) returned")
    return found


@contextmanager
def _connection(target: str, dsn: str | None) -> "Iterator[psycopg.Connection[Any]]":
    """Connect; what Postgres refuses meanwhile is an error of one line."""
    import psycopg

    from leasecache.errors import SourceError
    from leasecache.invalidation.source import connect

    with connect(_default_dsn() if dsn is None else dsn) as connection:
        try:
            yield connection
        except psycopg.Error as error:
            fault = error.diag.message_primary or " ".join(str(error).split())
            fix = _FIXES.get(error.sqlstate or "", "nothing is half done; run it again").format(target=target)
            raise SourceError(f"{target}: {fault}; {fix}") from None


def _default_dsn() -> str:
    """Return where libpq would connect to by its variables and service files, so that an error can name it."""
    from psycopg import conninfo, pq

    from leasecache.errors import ConfigError

    if not any(os.environ.get(name) for name in _LIBPQ):
        raise ConfigError(
            "which database? give --dsn postgresql://user@host:port/database, LEASECACHE_DSN or PGDATABASE"
        )
    told = {option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val}
    return conninfo.make_conninfo("", **{name: told[name] for name in _ADDRESS if name in told})


@contextmanager
def _progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal while batches are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        number = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(number, completed=done, total=total)


def _report(drifts: "dict[Any, Drift]", as_json: bool, exact: str) -> None:
    rows = [
        {"key": key, "stored": drift.stored, "actual": drift.actual, "difference": drift.difference}
        for key, drift in drifts.items()
    ]
    rows.sort(key=lambda row: -abs(row["difference"]))
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
    elif rows:
        _show(rows)
    else:
        typer.echo(exact)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("key", *(Column(name, justify="right") for name in ("stored", "actual", "difference")))
    for row in rows:
        table.add_row(Text(str(row["key"])), str(row["stored"]), str(row["actual"]), f"{row['difference']:+}")
    print_table(table)
