"""Fetches a recent memcached where the system's is too old: `python -m leasecache.lab.fetch`, run by `make servers`.

Debian's apt-get checks signatures and downloads; its state is private, so neither root nor the system's own sources are
touched. The program runs with the C library of its own suite (`install.fetched_command`).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from leasecache.errors import ConfigError
from leasecache.lab.install import FETCHED, fetched_command, is_recent, memcached_program

MIRROR, SUITE = "http://deb.debian.org/debian", "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("memcached", "libc6", "libevent-2.1-7t64", "libsasl2-2", "libssl3t64", "libzstd1", "zlib1g")


def fetch(folder: Path = FETCHED) -> None:
    """Put memcached and its libraries into `folder`. Raises ConfigError naming what is missing."""
    if shutil.which("apt-get") is None or not KEYRING.exists():
        raise ConfigError(f"a memcached of 1.6.27 or later is needed; install one, or apt-get and {KEYRING}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        root = _unpacked(Path(scratch))
        fetched_command(root)
        if folder.exists():
            shutil.rmtree(folder)
        root.rename(folder)


def _unpacked(scratch: Path) -> Path:
    apt = _private_apt(scratch)
    _run(scratch, *apt, "update")
    _run(scratch, *apt, "download", *PACKAGES)
    root = scratch / "root"
    for package in scratch.glob("*.deb"):
        _run(scratch, "dpkg-deb", "--extract", str(package), str(root))
    shutil.rmtree(root / "usr/share")
    return root


def _private_apt(scratch: Path) -> list[str]:
    """Return an apt-get that knows one suite and keeps what it learns in `scratch`."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {SUITE} main\n")
    options = {
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::SourceList": scratch / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # the usual one cannot enter our directory
    }
    return ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]


def _run(scratch: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{command[0]} could not fetch a recent memcached: {done.stderr.strip()}")


def main() -> None:
    """Fetch unless the system's memcached is recent, or one is there already."""
    if is_recent(memcached_program()) or FETCHED.exists():
        return
    sys.stdout.write(f"fetching a recent memcached of Debian {SUITE} into {FETCHED}\n")
    try:
        fetch()
    except ConfigError as error:
        sys.exit(f"leasecache: {error}")


if __name__ == "__main__":
    main()
