"""The command line: what it prints, and that every error is one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_daemon import run_to_exit

CLI = ("-m", "leasecache.cli")
APPLICATION = """
from leasecache import Cache, row
cache = Cache.from_url("memory://?namespace=shop")
@cache.cached("media:{media_id}", ttl=60, depends_on=row("media", media_id="id"))
def get_media(media_id: int) -> str: ...
"""


def test_version() -> None:
    """--version names version and implementation."""
    code, out, err = run_to_exit([*CLI, "--version"])
    assert (code, err) == (0, "")
    assert out.startswith("leasecache ")
    assert out.rstrip().endswith(("(c)", "(python)"))


def test_rules(tmp_path: Path) -> None:
    """`rules` prints what a daemon can read instead of importing the application."""
    (tmp_path / "shop_application.py").write_text(APPLICATION)
    code, out, err = run_to_exit([*CLI, "rules", "shop_application:cache"], PYTHONPATH=str(tmp_path))
    assert (code, err) == (0, "")
    (only,) = json.loads(out)["rules"]
    assert (only["template"], only["table"], only["fields"]) == ("media:{media_id}", "public.media", {"media_id": "id"})


REFUSED = """
from leasecache import Cache, row
cache = Cache()
@cache.cached("price:{amount}", ttl=60, depends_on=row("prices", amount="amount"))
def get_price(amount: float) -> str: ...
"""


@pytest.mark.parametrize("command", ["daemon", "check", "setup"])
def test_a_key_field_of_type_float(command: str, tmp_path: Path) -> None:
    """An application whose key no daemon could render is refused in one line that names function, field and fix."""
    (tmp_path / "refused_application.py").write_text(REFUSED)
    (tmp_path / "leasecache.toml").write_text(
        '[source]\ndsn = "postgresql://127.0.0.1:1/app"\nslot = "s"\npublication = "p"\n'
        '[cache]\nurl = "memcached://127.0.0.1:1"\n[rules]\nimport = ["refused_application:cache"]\n'
    )
    code, out, err = run_to_exit(
        [*CLI, command, "--config", str(tmp_path / "leasecache.toml")], PYTHONPATH=str(tmp_path)
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "refused_application.get_price: parameter 'amount' cannot be a key field as float" in err
    assert err.endswith("use int or str\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rules", "nothing"), "module:attribute"),
        (("rules", "no_such_module:cache"), "no_such_module"),
        (("daemon", "--config", "gone.toml"), "gone.toml"),
        (("check", "--config", "gone.toml"), "gone.toml"),
        (("setup", "--config", "gone.toml"), "gone.toml"),
        (("daemon",), "source.dsn is missing"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], says: str) -> None:
    """Wrong use is one line on standard error and exit code 2."""
    code, out, err = run_to_exit([*CLI, *arguments])
    assert (code, out) == (2, "")
    assert err.startswith("leasecache: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("frobnicate",), "No such command 'frobnicate'; see leasecache --help"),
        (("daemon", "--no-such-option"), "--no-such-option"),
        (("rules",), "Missing argument 'MODULE:CACHE'; see leasecache rules --help"),
        (("get",), "Missing argument 'KEY'; see leasecache get --help"),
        (("counters", "sql"), "see leasecache counters sql --help"),
        (("invalidate", "k", "--cache", "memory://", "--stale-for", "-1"), "--stale-for"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], says: str) -> None:
    """An unknown command or option, or a missing one, is exit code 2 and one line that names the help."""
    code, out, err = run_to_exit([*CLI, *arguments])
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err


@pytest.mark.parametrize("arguments", [(), ("counters",)])
def test_without_a_command(arguments: tuple[str, ...]) -> None:
    """Without a command the help is shown, and the exit code is 2."""
    code, out, err = run_to_exit([*CLI, *arguments])
    assert code == 2
    assert "Usage" in out + err


@pytest.mark.parametrize(
    ("missing", "arguments", "says"),
    [
        ("typer", ("--version",), "pip install 'leasecache[cli]'"),
        ("psycopg", ("check",), "pip install 'leasecache[daemon]'"),
        ("prometheus_client", ("daemon",), "pip install 'leasecache[daemon]'"),
    ],
)
def test_a_missing_extra(missing: str, arguments: tuple[str, ...], says: str) -> None:
    """Without an extra the command says what to install."""
    program = f"import sys; sys.modules[{missing!r}] = None; from leasecache.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert says in done.stderr


def test_the_daemon_module_says_what_it_needs() -> None:
    """Without the extra, `python -m leasecache.invalidation` says what to install."""
    program = (
        "import sys; sys.modules['psycopg'] = None; from leasecache.invalidation.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pip install 'leasecache[daemon]'" in done.stderr


@pytest.mark.parametrize("variable", ["LEASECACHE_LOG_FORMAT", "LEASECACHE_LOG_LEVEL"])
@pytest.mark.parametrize("entry", [("-m", "leasecache.invalidation"), (*CLI, "daemon")])
def test_an_unknown_log_format(entry: tuple[str, ...], variable: str) -> None:
    """A log format or level that does not exist is refused, from the environment too."""
    code, out, err = run_to_exit([*entry, "--config", "gone.toml"], **{variable: "loud"})
    assert (code, out, "loud" in err, "Traceback" in err) == (2, "", True, False)


def test_the_daemon_module_has_the_same_manners() -> None:
    """`python -m leasecache.invalidation` reports like the command does."""
    code, out, err = run_to_exit(["-m", "leasecache.invalidation", "--config", "gone.toml"])
    assert (code, out, err) == (2, "", "leasecache: cannot read gone.toml: No such file or directory\n")
