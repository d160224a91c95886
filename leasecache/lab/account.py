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
LONGEST_ROOT = 60  # bytes: the path of a Unix socket has at most 103 on macOS, and ours appends 42


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

    def scratch_root(self) -> Path:
        """Return the directory in which servers get theirs: reachable, and short enough for a Unix socket in it."""
        for root in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
            if root.is_dir() and len(os.fsencode(root)) <= LONGEST_ROOT and self.reaches(root):
                return root
        raise ConfigError("no temporary directory is open to the account of the servers; set TMPDIR to one that is")

    def new_directory(self) -> Path:
        """Create a directory for one server, with `data` in it that belongs to the account; the warden knows of it."""
        directory = self.scratch_root() / f"leasecache-{secrets.token_hex(6)}"
        Warden.of_this_process().tell("directory", directory)
        directory.mkdir()
        directory.chmod(0o755 if self.switched else 0o700)
        data = directory / "data"
        data.mkdir(mode=0o700)
        os.chown(data, self.uid, self.gid)
        return directory
