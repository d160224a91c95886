"""Commands that look into a cache or a counter. Each imports what it needs when it runs; `leasecache.cli` has them."""

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.table import Table

DONE, FOUND, WRONG_USE = 0, 1, 2  # exit codes; FOUND = it was looked at, and is absent or wrong
_UNBOUNDED = 10_000  # columns

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def give_up(message: str) -> NoReturn:
    """Say in one line what was found, and exit."""
    typer.echo(f"leasecache: {message}", err=True)
    raise typer.Exit(FOUND)


def print_table(table: "Table") -> None:
    """Print a table, as wide as it is when the output is no terminal that it has to fit into."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = _UNBOUNDED
    console.print(table)
