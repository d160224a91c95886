"""Who may import whom: the table of ARCHITECTURE.md, held against every import statement."""

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# layer → its modules. A module imports from its own layer and from those named in BELOW; nothing else.
LAYERS: dict[str, list[str]] = {
    "0 plain values": ["errors", "policy", "rules", "fork", "invalidation.lsn"],
    "1 hot path": [
        "_hits",
        "_hot",
        "_keys",
        "_mux",
        "_pure",
        "_pure_hits",
        "_pure_keys",
        "_pure_mux",
        "_pure_pending",
        "_pure_states",
        "_accel",
    ],
    "2 sans-IO": [
        *("keys", "codecs", "lease", "guard", "signature", "messages"),
        *(f"stores.{name}" for name in ("meta", "classic", "greeting", "ring", "redis_scripts", "redis_wire")),
        *(f"invalidation.{name}" for name in ("wire", "pgoutput", "stream", "walker", "_pgoutput", "_pure_pgoutput")),
        *("invalidation.gate", "invalidation.held", "invalidation.parcel"),
        *(f"invalidation.{name}" for name in ("history", "markup", "quantities", "chart", "look")),
    ],
    "3 waiting": [
        *("task", "flow", "batch", "singleflight", "holders", "loadtime", "schedule"),
        *("poller", "apoller", "driver", "adriver"),
        *(*("metrics", "stores", "stores.*", "config", "target", "background"), "transaction"),
    ],
    "4 functions": ["function", "calls", "acalls", "many", "amany", "decorator", "surface"],
    "5 surface": ["registry", "cache", "acache", ""],
    "6 counters": ["counter_sql", "counters"],
    "7 surroundings": ["prometheus", "testing", "contrib", "contrib.*", "lab", "lab.*"],
    "D daemon": [
        "invalidation",
        *(f"invalidation.{name}" for name in ("settings", "logs", "source", "catalog", "ddl", "lint", "router")),
        *(
            f"invalidation.{name}"
            for name in ("reader", "readers", "dispatch", "follow", "status", "server", "daemon", "launch")
        ),
        *(f"invalidation.{name}" for name in ("figures", "state", "readiness", "summary", "answers", "page")),
        *(
            f"invalidation.{name}"
            for name in ("survey", "triggers", "drift", "finding", "fitness", "configuration", "inspection")
        ),
        *(f"invalidation.{name}" for name in ("mailbox", "keeper", "journal", "tenure", "recovery", "signals")),
        "invalidation.__main__",
    ],
    "8 command line": ["cli", "__main__", "commands", "commands.*"],
}
BELOW: dict[str, str] = {"0": "", "1": "0", "2": "01", "3": "012", "4": "0123", "5": "01234", "6": "012345"} | {
    "7": "0123456D",
    "D": "0123",
    "8": "01234567D",
}
THIRD_PARTY: dict[str, list[str]] = {
    "wrapt": ["decorator"],
    "msgspec": ["codecs"],
    "pymemcache": ["stores.*", "lab.demo.*"],  # the demo compares with the plain client
    "redis": ["stores.*"],
    "psycopg": [
        "counter_sql",
        "counters",
        "graph",
        "commands.counting",
        "lab.*",
        *(f"invalidation.{n}" for n in ("source", "reader", "ddl", "lint")),
    ],
    "prometheus_client": ["invalidation.figures", "invalidation.answers", "prometheus"],
    "tomli": ["invalidation.settings"],
    "tomllib": ["invalidation.settings"],  # not in the standard library of Python 3.10
    "typer": ["cli", "commands", "commands.*"],
    "rich": ["cli", "commands", "commands.*", "lab.demo*"],
    "pytest": ["testing"],
    "django": ["contrib.django"],
}
TYPES_ONLY = {  # under TYPE_CHECKING
    "psycopg": ["invalidation.catalog", "invalidation.ddl"],
    "typing_extensions": ["cache", "acache"],
}
IMPURE = {"socket", "select", "ssl", "asyncio", "time", "threading", "random", "secrets", "logging", "subprocess"}


class Import(NamedTuple):
    """One import statement."""

    importer: str  # without "leasecache."
    imported: str  # a module of ours without "leasecache.", or the top-level name of another
    ours: bool
    types_only: bool
    line: int


def sources() -> dict[str, Path]:
    """Return the path of every module: its name without "leasecache." ("" is the package itself)."""
    folders = {"": ROOT / "leasecache", "invalidation": ROOT / "invalidation"}
    found: dict[str, Path] = {}
    for prefix, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            if "invalidation" in path.relative_to(folder).parts:
                continue  # the link to the folder of the daemon
            parts = [prefix, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part and part != "__init__")] = path
    return found


SOURCES = sources()
MODULES = {*SOURCES, "_hits", "_hot", "_keys", "_mux", "invalidation._pgoutput"}


def imports_of(module: str) -> Iterator[Import]:
    """Return every import of a module, those within functions included."""
    tree = ast.parse(SOURCES[module].read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield _import(module, name, id(node) in guarded, node.lineno)


def _import(importer: str, name: str, types_only: bool, line: int) -> Import:
    top, _, rest = name.partition(".")
    if top != "leasecache":
        return Import(importer, top, False, types_only, line)
    if rest not in MODULES:
        rest = rest.rpartition(".")[0]  # a name within a module
    assert rest in MODULES, f"{importer}:{line} imports {name}, which is not there"
    return Import(importer, rest, True, types_only, line)


IMPORTS = [found for module in SOURCES for found in imports_of(module)]


def matches(module: str, patterns: list[str]) -> bool:
    """Tell whether a module is named, or covered by a pattern such as "stores.*"."""
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)


def layer_of(module: str) -> str:
    """Return the key of a module's layer; an exact name counts before a pattern."""
    exact = [layer[0] for layer, names in LAYERS.items() if module in names]
    found = exact or [layer[0] for layer, names in LAYERS.items() if matches(module, names)]
    assert len(found) == 1, f"leasecache.{module} must be placed in one layer of {Path(__file__).name}, is in {found}"
    return found[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_place(module: str) -> None:
    """A new module fails here until somebody decides where it belongs."""
    assert layer_of(module) in BELOW


def test_the_table_names_what_is_there() -> None:
    """A module that has gone leaves the table, too."""
    names = [name for layer in LAYERS.values() for name in layer]
    assert [name for name in names if not any(matches(module, [name]) for module in MODULES)] == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_arrows_point_down(module: str) -> None:
    """A module imports only from its own layer and from those below it."""
    own = layer_of(module)
    allowed = own + BELOW[own]
    wrong = [
        f"line {found.line}: {module} ({own}) → {found.imported} ({layer_of(found.imported)})"
        for found in IMPORTS
        if found.importer == module and found.ours and layer_of(found.imported) not in allowed
    ]
    assert wrong == []


def test_no_circles() -> None:
    """Within a layer, too, imports lead nowhere back."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        if found.ours and not found.types_only:
            graph[found.importer].add(found.imported)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_library_does_not_know_the_daemon() -> None:
    """Nothing that an application imports imports leasecache.invalidation, its lsn apart."""
    wrong = [
        f"{found.importer}:{found.line}"
        for found in IMPORTS
        if found.imported.startswith("invalidation")
        and found.imported != "invalidation.lsn"
        and not found.importer.startswith("invalidation")
        and layer_of(found.importer) in "0123456"
    ]
    assert wrong == []


def test_third_parties_stay_in_their_rooms() -> None:
    """Each dependency is imported where the table says, and there is none that it does not name."""
    wrong = []
    for found in IMPORTS:
        if found.ours or found.imported in sys.stdlib_module_names:
            continue
        rooms = THIRD_PARTY.get(found.imported, [])
        if found.types_only:
            rooms = rooms + TYPES_ONLY.get(found.imported, [])
        if not matches(found.importer, rooms):
            wrong.append(f"{found.importer}:{found.line} imports {found.imported}")
    assert wrong == []


def test_sans_io() -> None:
    """Layers 0 to 2 decide without clock, thread, socket, chance or log (the pure wire is the socket's twin)."""
    wrong = [
        f"{found.importer}:{found.line} imports {found.imported}"
        for found in IMPORTS
        if layer_of(found.importer) in "012"
        and found.imported in IMPURE
        and found.importer not in ("_pure", "_pure_mux", "_pure_pending")
    ]
    assert wrong == []


def test_import_is_light() -> None:
    """`import leasecache` loads neither Postgres nor Redis nor the command line nor the daemon."""
    program = "import sys, leasecache; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = (
        "psycopg",
        "redis",
        "typer",
        "rich",
        "prometheus_client",
        "pydantic",
        "leasecache.invalidation",
        "leasecache.lab",
    )
    assert [name for name in loaded if name.startswith(heavy)] == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_sizes(module: str) -> None:
    """No module is longer than 400 lines, no function longer than 50."""
    text = SOURCES[module].read_text()
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in functions
        if (node.end_lineno or 0) - node.lineno + 1 > 50
    ]
    assert long == []
    assert text.count("\n") <= 400
