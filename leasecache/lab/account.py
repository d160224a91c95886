"""The account that servers run as, and the directories where it can work."""

import os
import pwd
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from leasecache.errors import ConfigError
from leasecache.lab.warden import Warden

UNPRIVILEGED = ("nobody", "daemon", "postgres")  # in order of preference
LONGEST_ROOT = 59  # bytes: the path of a Unix socket has at most 103 on macOS, and ours appends 44

MEMORY = Path("/dev/shm")  # a file system in memory, on Linux
ROOMY = 4 << 30  # bytes that must be free in it, and of the machine's memory, for servers to live there


class Identity(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change to another account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user and group of the servers: our own, except that root hands over to an unprivileged one."""

    uid: int
    gid: int
    switched: bool

    @classmethod
    def for_servers(cls) -> "Account":
        """Choose the account; Postgres and memcached refuse to run as root."""
        if os.geteuid() != 0:
            return cls(uid=os.geteuid(), gid=os.getegid(), switched=False)
        for name in UNPRIVILEGED:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(uid=entry.pw_uid, gid=entry.pw_gid, switched=True)
        raise ConfigError(f"root cannot run Postgres and no account of {', '.join(UNPRIVILEGED)} exists; add one")

    @property
    def identity(self) -> Identity:
        """Return the arguments of `subprocess.Popen` that run a program as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switched else {}

    def reaches(self, path: Path) -> bool:
        """Tell whether this account can get at `path`; as root only the bits for everybody else are trusted."""
        real = path.resolve()
        return not self.switched or all(step.stat().st_mode & 0o001 for step in (real, *real.parents))

    def scratch_root(self, *, in_memory: bool = True) -> Path:
        """Return the directory in which servers get theirs: reachable, and short enough for a Unix socket in it.

        TMPDIR decides when it is set. Otherwise a roomy file system in memory is preferred: a data directory has a
        thousand files, and to create and delete them by the hundred pairs took 1 s each on ext4, 0.1 s in memory.
        """
        roots = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
        if in_memory and "TMPDIR" not in os.environ and _roomy(MEMORY):
            roots.insert(0, MEMORY)
        for root in roots:
            if root.is_dir() and len(os.fsencode(root)) <= LONGEST_ROOT and self.reaches(root):
                return root
        raise ConfigError("no temporary directory is open to the account of the servers; set TMPDIR to one that is")

    def new_directory(self, *, in_memory: bool = True) -> Path:
        """Create a directory for one server, with `data` in it that belongs to the account; the warden knows of it."""
        directory = self.scratch_root(in_memory=in_memory) / f"leasecache-{secrets.token_hex(6)}"
        Warden.of_this_process().tell("directory", directory)
        directory.mkdir()
        directory.chmod(0o755 if self.switched else 0o700)
        data = directory / "data"
        data.mkdir(mode=0o700)
        os.chown(data, self.uid, self.gid)
        return directory


def _roomy(root: Path) -> bool:
    if not root.is_dir():
        return False
    volume = os.statvfs(root)
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(volume.f_bavail * volume.f_frsize, memory) >= ROOMY
