"""What nodes could not be told, on disk, so that the source need not keep its log for them.

A directory for one slot: `position` holds the last W that was reported, `tables` what was known of the tables then,
and each node has a file of lines: `g` its generation, with the run of the server and what the record named, `k` a key,
`v` everything is void. A key is in the file, and the file on disk, before W passes it. A line cut off by a crash was
never counted on; anything else that cannot be read makes the node's generation void.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

from leasecache.errors import ConfigError, SourceError
from leasecache.keys import check_key

MIB = 2**20


class JournalError(Exception):
    """The journal cannot be written or read: the disk is full, or the directory is gone."""


class Position(NamedTuple):
    """What was last reported to the source."""

    system: str  # the cluster's identifier
    acknowledged: int
    readers: int | None  # another number when a reader may have gone back in time since, None = unknown
    tables: str | None = None  # digest of what was known of the tables, None = nothing


class Entries(NamedTuple):
    """Some keys of a node's journal, and where the next ones stand."""

    keys: list[bytes]
    end: int  # bytes

    def __len__(self) -> int:
        return len(self.keys)


class Journal:
    """The directory of one slot; one process at a time."""

    def __init__(self, directory: Path, slot: str, limit: int) -> None:
        """`limit` is in bytes and per node. Raises ConfigError when the directory cannot be made or written."""
        self._directory = directory / slot
        self._limit = limit
        self._lock: IO[bytes] | None = None
        self._saved: Position | None = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"journal.directory: cannot make {self._directory}: {error.strerror}") from None
        try:
            self._open_lock().close()
        except OSError as error:
            raise ConfigError(
                f"journal.directory: cannot write in {self._directory}: {error.strerror}; let the daemon's user own it"
            ) from None

    def open(self) -> Position | None:
        """Return what was last reported, None if nothing was. Raises SourceError while another process has it open."""
        if self._lock is None:
            try:
                lock = self._open_lock()
            except OSError as error:  # the disk is full, or no longer there
                raise SourceError(f"cannot open the journal {self._directory}: {error.strerror}") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise SourceError(f"another daemon has the journal {self._directory} open") from None
            self._lock = lock
        self._saved = self._read_position()
        return self._saved

    def _open_lock(self) -> IO[bytes]:
        return (self._directory / "lock").open("wb")

    def save(self, position: Position) -> None:
        """Note what is about to be reported. Raises JournalError."""
        if position != self._saved:
            replace_file(self._directory / "position", json.dumps(position._asdict()).encode())
            self._saved = position

    def note_tables(self, marks: Mapping[str, str]) -> str:
        """Keep what is known of the tables; return its digest, for a `Position`. Raises JournalError."""
        replace_file(self._directory / "tables", json.dumps(marks).encode())
        return _digest(marks)

    def stands_on(self, position: Position, marks: Mapping[str, str] | None) -> bool:
        """Tell whether what was known of the tables at `position` is still so; more may be known by now."""
        if marks is None or position.tables == _digest(marks):
            return position.tables == (None if marks is None else _digest(marks))
        try:
            known = json.loads((self._directory / "tables").read_bytes())
            return _digest(known) == position.tables and all(
                known.get(name, marks[name]) == marks[name] for name in marks
            )
        except (OSError, ValueError, AttributeError, TypeError):
            return False

    def of(self, node: str, *, voidable: bool) -> "NodeJournal":
        """Return the journal of a node; `voidable`: beyond its limit a new generation does. Raises JournalError."""
        return NodeJournal(self._directory / _file_name(node), self._limit, voidable=voidable)

    def forget_all_but(self, nodes: Iterable[str]) -> None:
        """Remove the journals of other nodes: from now on W passes without them. Raises JournalError."""
        kept = {_file_name(node) for node in nodes}
        with _as_journal_error(self._directory):
            gone = [path for path in self._directory.glob("*.journal") if path.name not in kept]
            for path in gone:
                path.unlink()
            if gone:
                _sync_directory(self._directory)

    def close(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read_position(self) -> Position | None:
        try:
            found = json.loads((self._directory / "position").read_bytes())
            return Position(str(found["system"]), int(found["acknowledged"]), found["readers"], found.get("tables"))
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Standing(NamedTuple):
    """A generation, and what it was given for."""

    generation: int
    run: str  # of the server
    marks: frozenset[bytes]  # of what the guard record has named: rings, functions, and its own key


class NodeJournal:
    """The keys that one node has missed, oldest first."""

    def __init__(self, path: Path, limit: int, *, voidable: bool = True) -> None:
        """Read what an earlier process has left. Raises JournalError."""
        self.standing: Standing | None = None  # that guarded keys had when the node was last told everything
        self.void = False  # the generation is of no use any more
        self.size = 0  # bytes on disk
        self._path = path
        self._limit = limit
        self._voidable = voidable
        self._count = 0
        self._begin = 0  # bytes: where the first key that is left stands
        self._unwritten: list[bytes] = []
        with _as_journal_error(path):
            path.touch()
            self._load()
            self._file = path.open("ab", buffering=0)
        if not voidable:
            self._forget()

    def __len__(self) -> int:
        """Return how many keys the node has missed."""
        return self._count

    def append(self, keys: Iterable[bytes], *, void: bool) -> None:
        """Add keys; `void`: the node shall have a new generation when it is back.

        Raises JournalError when they are too many, unless a new generation does instead.
        """
        lines = [b"k %b\n" % key for key in keys]
        full = self.size + sum(map(len, lines)) > self._limit
        if full and not self._voidable:
            self._discard(self._unwritten)
            raise JournalError(f"the journal {self._path} is full; bring the node back, or take it out of the ring")
        if void or self.void or full:
            lines = [] if self.void else [b"v\n"]
            self.void, self._count = True, 0
        self._unwritten += lines
        self._count += sum(line[:1] == b"k" for line in lines)

    def sync(self) -> None:
        """Bring everything appended to disk; returns when it is there. Raises JournalError: then it is to be repeated.

        What is void stays so.
        """
        if not self._unwritten:
            return
        lines, self._unwritten = self._unwritten, []
        try:
            self._write(lines)
        except JournalError:
            self._discard(lines)
            raise

    def _discard(self, lines: Iterable[bytes]) -> None:
        """Forget what is not on disk: whoever appended it keeps it."""
        self._count = max(0, self._count - sum(line[:1] == b"k" for line in lines))
        self._unwritten = [b"v\n"] if self.void else []

    def _write(self, lines: Iterable[bytes]) -> None:
        with _as_journal_error(self._path):
            if self.void:
                self._rewrite(self.standing, void=True)
                return
            data = b"".join(lines)
            try:
                write_all(self._file.fileno(), data)
                os.fsync(self._file.fileno())
            except OSError:
                os.truncate(self._path, self.size)  # half a line would make the rest unreadable
                raise
            self.size += len(data)

    def entries(self, most: int) -> Entries:
        """Return the oldest keys, `most` of them at most. Raises JournalError."""
        keys: list[bytes] = []
        with _as_journal_error(self._path, "read"), self._path.open("rb") as file:
            file.seek(self._begin)
            while len(keys) < most and (line := file.readline()):
                if line[:1] == b"k":
                    keys.append(line[2:-1])
            return Entries(keys, file.tell())

    def drop(self, entries: Entries) -> None:
        """Forget keys that the node has been told. Raises JournalError."""
        self._begin = entries.end
        self._count = max(0, self._count - len(entries))
        if not self._count:
            with _as_journal_error(self._path):
                self._rewrite(self.standing, void=self.void)

    def keep(self, standing: Standing) -> None:
        """Note that the node has been told everything under this generation. Raises JournalError."""
        if standing != self.standing or self.void:
            with _as_journal_error(self._path):
                self._rewrite(standing, void=False)
            self._count = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _forget(self) -> None:
        """Note that nothing is told under a generation any more, so that nobody relies on it later."""
        if self.void:
            with _as_journal_error(self._path):
                self._rewrite(None, void=False)
        elif self.standing is not None:
            self.standing = None
            self._unwritten.append(b"g\n")
            self.sync()

    def _rewrite(self, standing: Standing | None, *, void: bool) -> None:
        """Leave only the generation, and whether it is void."""
        lines = [] if standing is None else [_standing_line(standing)]
        data = b"".join([*lines, *([b"v\n"] if void else [])])
        replace_file(self._path, data)
        self.standing, self.void = standing, void
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self.size = self._begin = len(data)
        self._unwritten = []

    def _load(self) -> None:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # what follows was cut off by a crash
        if whole != data:
            os.truncate(self._path, len(whole))
        self.size = len(whole)
        for line in whole.splitlines():
            self._read(line)
        if self.void:
            self._count = 0

    def _read(self, line: bytes) -> None:
        try:
            kind, _, rest = line.partition(b" ")
            if kind == b"k":
                check_key(rest)
                self._count += 1
            elif kind == b"g":
                self.standing = _read_standing(rest) if rest else None
            else:
                self.void = True
        except ValueError:
            self.void = True


def _digest(marks: Mapping[str, str]) -> str:
    return hashlib.blake2b(json.dumps(sorted(marks.items())).encode(), digest_size=16).hexdigest()


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data` to a file, which may take it in pieces. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` where `path` is, so that a crash leaves either the old or the new file. Raises JournalError."""
    with _as_journal_error(path):
        temporary = path.with_suffix(".new")
        with temporary.open("wb", buffering=0) as file:
            write_all(file.fileno(), data)
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _file_name(node: str) -> str:
    return f"{quote(node, safe='')}.journal"


def _standing_line(standing: Standing) -> bytes:
    return b"g %016x %b %b\n" % (standing.generation, standing.run.encode(), b" ".join(sorted(standing.marks)))


def _read_standing(text: bytes) -> Standing:
    generation, run, *marks = text.split(b" ")
    return Standing(int(generation, 16), run.decode("ascii"), frozenset(marks))


@contextlib.contextmanager
def _as_journal_error(path: Path, what: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(f"cannot {what} the journal {path}: {error.strerror or error}") from None
