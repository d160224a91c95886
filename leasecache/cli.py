"""The command line. A command imports what it needs when it runs, so `leasecache --help` is quick."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from leasecache.errors import GapError, LeasecacheError

if TYPE_CHECKING:
    from leasecache.invalidation.ddl import Step
    from leasecache.invalidation.finding import Finding

try:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leasecache.commands import DONE, FOUND, WRONG_USE, AsJson, counting, entries, nodes
except ModuleNotFoundError as missing:
    print(f"leasecache: the command line needs {missing.name}: pip install 'leasecache[cli]'", file=sys.stderr)  # noqa: T201
    raise SystemExit(2) from None

app = typer.Typer(name="leasecache", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file; LEASECACHE_<TABLE>_<KEY> in the environment goes over it.", metavar="FILE"
    ),
]


def main() -> None:
    """Run the command line; every error is one line on standard error."""
    try:
        raise SystemExit(app(standalone_mode=False, prog_name="leasecache") or DONE)
    except typer.Abort:
        _fail("interrupted", FOUND)
    except GapError as error:
        _fail(str(error), FOUND)  # lost changes are a failure, every other error is wrong use
    except LeasecacheError as error:
        _fail(str(error), WRONG_USE)
    except ImportError as error:
        needed = error.name or "psycopg[binary]"  # psycopg without libpq does not say its name
        if needed.partition(".")[0] not in {"psycopg", "psycopg[binary]", "prometheus_client", "tomli"}:
            _fail(f"unexpected ImportError: {error}", FOUND)
        _fail(f"this command needs {needed}: pip install 'leasecache[daemon]' 'psycopg[binary]'", WRONG_USE)
    except Exception as error:
        _refuse(error)
        _fail(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; please report it", FOUND)


def _refuse(error: Any) -> None:
    """End with one line if this is the parser's word on wrong arguments; help that was not asked for is shown whole."""
    if not hasattr(error, "format_message"):
        return
    message = str(error.format_message()).strip()
    if not message or "\n" in message:  # called without arguments: the help, which some versions have printed by now
        typer.echo(message, err=True, nl=bool(message))
        raise SystemExit(WRONG_USE)
    context = getattr(error, "ctx", None)
    _fail(f"{message.rstrip('.')}; see {context.command_path if context else 'leasecache'} --help", WRONG_USE)


def _fail(message: str, code: int) -> None:
    typer.echo(f"leasecache: {message}", err=True)
    raise SystemExit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from leasecache import _accel

        typer.echo(f"leasecache {version('leasecache')} ({_accel.IMPL})")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version and implementation."),
    ] = False,
) -> None:
    """A cache for Postgres with leases, and invalidation from logical replication."""


@app.command()
def daemon(
    config: Config = None,
    log_format: Annotated[Literal["logfmt", "json"], typer.Option(envvar="LEASECACHE_LOG_FORMAT")] = "logfmt",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(envvar="LEASECACHE_LOG_LEVEL")
    ] = "info",
) -> None:
    """Follow the database and invalidate what committed changes touch, until SIGTERM."""
    from leasecache.invalidation.signals import end_at_once

    end_at_once()
    from leasecache.invalidation.launch import run_daemon
    from leasecache.invalidation.logs import configure

    configure(log_format, log_level)
    run_daemon(config)


@app.command()
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Tell whether the database can serve the rules, and print the SQL that helps. Exit code 1 = something is wrong."""
    from leasecache.invalidation.inspection import find_faults

    findings = find_faults(config)
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        _show_findings(findings)
    raise typer.Exit(FOUND if any(not finding.note for finding in findings) else DONE)


@app.command()
def setup(
    config: Config = None,
    apply: Annotated[bool, typer.Option("--apply", help="Run the statements instead of printing them only.")] = False,
    primary: Annotated[
        str | None, typer.Option(help="The primary, when the source is a standby that does not tell.", metavar="DSN")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print, or apply, what is still to be run: replica identities, publication, triggers, slot."""
    from leasecache.invalidation.inspection import plan_setup

    setup_plan = plan_setup(config)
    if as_json:
        typer.echo(json.dumps([step._asdict() for step in setup_plan.steps], indent=2))
    else:
        _show_steps(setup_plan.steps)
    if apply:
        for refusal in setup_plan.apply(primary):
            typer.echo(f"leasecache: left out, as it is optional: {refusal}", err=True)
    for finding in setup_plan.beyond:
        typer.echo(f"leasecache: {finding.sentence()}", err=True)
    raise typer.Exit(FOUND if setup_plan.beyond else DONE)


@app.command()
def rules(cache: Annotated[str, typer.Argument(metavar="MODULE:CACHE")]) -> None:
    """Print the invalidation rules of a cache as JSON, for a daemon that does not import the application."""
    from leasecache.invalidation.settings import import_rules

    typer.echo(json.dumps(import_rules(cache).to_json(), indent=2))


@app.command()
def demo(
    postgres: Annotated[Literal["16", "18"], typer.Option(help="Major version of PostgreSQL.")] = "18",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up, and tell how to reach them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tour two data centres on real servers. Exit code 1 = something did not hold."""
    from leasecache.lab.demo.tour import run

    raise typer.Exit(DONE if run(version=int(postgres), as_json=as_json, keep=keep) else FOUND)


for command in (entries.get, entries.peek, entries.invalidate, nodes.stats):
    app.command()(command)
app.add_typer(counting.app, name="counters")


def _show_findings(findings: "list[Finding]") -> None:
    faults = [finding for finding in findings if not finding.note]
    notes = [finding for finding in findings if finding.note]
    if faults:
        table = Table("rule", "table", "consequence", show_lines=True)
        for finding in faults:
            table.add_row(*(Text(cell or "-") for cell in (finding.rule, finding.table, finding.consequence)))
        Console().print(table)
        for remedy in dict.fromkeys(sql for finding in faults for sql in finding.remedy):
            typer.echo(remedy if remedy.startswith("--") else f"{remedy};")
    else:
        typer.echo("nothing is wrong")
    for finding in notes:
        typer.echo(f"note: {finding.sentence()}")


def _show_steps(steps: "list[Step]") -> None:
    for step in steps:
        typer.echo(f"-- on the {step.where}: {step.why}\n{step.sql};")
    if not steps:
        typer.echo("-- nothing to do")


if __name__ == "__main__":
    main()
