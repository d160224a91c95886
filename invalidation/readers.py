"""All nodes that fills read from, asked together: what they show is what the least of them shows.

A reader that is away holds the gate, because nobody knows what it shows to others. A reader that may have gone back in
time puts in doubt whatever was released before: fills may have read an older state since, and no transaction will tell.
Nothing is released then until every reader shows all of it again; new generations void what was read meanwhile, and
only then is the reader `trusted`.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Protocol

from leasecache.errors import ConfigError, GapError, SourceError
from leasecache.invalidation.ddl import quoted
from leasecache.invalidation.gate import Answer, GateName, View, choose, choose_for_reader
from leasecache.invalidation.logs import event
from leasecache.invalidation.lsn import format_lsn
from leasecache.invalidation.reader import Reader
from leasecache.invalidation.settings import SourceSettings


class Observer(Protocol):
    """Who wants to know how the readers are doing."""

    def reader(self, name: str, text: str, *, holds: bool) -> None:
        """Note what is known of a reader, and whether it holds everything back."""
        ...

    def reader_rewound(self, name: str, reason: str) -> None:
        """Note that a reader may have gone back in time."""
        ...


class Readers:
    """The gate's question, put to all readers without waiting. It outlives conversations with the source."""

    def __init__(self, settings: SourceSettings, observer: Observer, wake: Callable[[], None]) -> None:
        """Prepare; nothing is opened. `wake` is called from other threads when `answer` has something to do."""
        self.asked = False
        self.released = 0  # the end of the last transaction that was ever released
        self._setting = settings.gate
        self._source = Reader(settings.dsn, wake)
        self._others = [Reader(dsn, wake) for dsn in settings.readers]
        self._all = [self._source, *self._others]
        self._waited_for = self._others if settings.gate == "replay" else self._all
        self._observer = observer
        self._gates: dict[str, str] = {}  # reader → its gate
        self._known_away: set[str] = set()
        self._known_rewound: set[str] = set()

    def open(self) -> None:
        """Connect to the source, and to every reader that is there; later calls only look whether the source is.

        Raises ConfigError when a server is not what the settings say, SourceError when the source is away.
        """
        if self._gates:
            self._source.attend()
            self._notice()
            if self._source.away:
                raise SourceError(self._source.away)
            return
        self._refuse_twins()
        identity = self._source.open()
        choose(self._setting, in_recovery=identity.in_recovery)
        for reader in self._others:
            reader.system = identity.system
            try:
                reader.open()
            except SourceError as error:
                reader.search(str(error))
            if self._diverged(reader):
                raise ConfigError(f"source.readers: {_apart(reader)}")
        self._notice()
        if self._setting != "replay":
            self._setting = "auto"  # what the settings say held at the start; a standby may be promoted since

    def _refuse_twins(self) -> None:
        names = [reader.name for reader in self._all]
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise ConfigError(
                f"source.readers: {twins[0]} is named twice; the source is a reader unless gate is replay"
            )

    @property
    def gate(self) -> GateName:
        """The source's own gate."""
        return self._gate_of(self._source)[0]

    @property
    def why(self) -> str:
        """Why it is this one."""
        return self._gate_of(self._source)[1]

    def _gate_of(self, reader: Reader) -> tuple[GateName, str]:
        if reader is self._source:
            return choose(self._setting, in_recovery=_recovering(reader))
        return choose_for_reader(in_recovery=_recovering(reader))

    def close(self) -> None:
        """Close every connection."""
        for reader in self._all:
            reader.close()

    @property
    def server(self) -> str | None:
        """Which server the source is, None while it is away."""
        return None if self._source.away or self._source.identity is None else self._source.identity.server

    @property
    def sockets(self) -> list[int]:
        """The descriptors that announce answers and the ends of connections."""
        return [socket for reader in self._all if (socket := reader.socket) is not None]

    @property
    def due(self) -> float | None:
        """When (monotonic s) a reader that is away is to be tried again, None when none is."""
        return min((reader.due for reader in self._all if reader.due is not None), default=None)

    @property
    def rewound(self) -> str | None:
        """Which reader may have gone back in time since it was last trusted, and why."""
        return next((reader.rewound for reader in self._waited_for if reader.rewound), None)

    @property
    def doubtful(self) -> bool:
        """Whether a reader is away, or may have gone back in time."""
        return any(reader.away or reader.rewound for reader in self._waited_for)

    @property
    def mark(self) -> int | None:
        """32 bits that change when any reader may have gone back in time, None while that cannot be known."""
        runs = [reader.identity and reader.identity.incarnation for reader in self._waited_for]
        if None in runs or self.doubtful:
            return None
        said = "\n".join(sorted(map(str, runs))).encode()
        return int.from_bytes(hashlib.blake2b(said, digest_size=4).digest(), "big")

    def ask(self) -> None:
        """Put the question to every reader that is there; the others are asked when they come."""
        for reader in self._all:
            reader.answer = None
            reader.ask()
        self.asked = True

    def answer(self) -> View | None:
        """Take what has come; return the view once every reader has answered, None before that.

        Raises GapError when a reader no longer follows the source.
        """
        for reader in self._all:
            reader.attend()
        self._notice()
        if not self.asked:
            return None
        answers = []
        for reader in self._waited_for:
            if reader.answer is None:
                reader.ask()
            else:
                answers.append(reader.answer)
        if len(answers) < len(self._waited_for):
            return None
        self.asked = False
        self._judge()
        return View(tuple(answers), self.rewound)

    def trust(self) -> None:
        """Rely again on what readers show: all of it is back, and what was read before is void."""
        self._known_rewound.clear()
        for reader in self._all:
            reader.rewound = None
            self._report(reader)

    def _notice(self) -> None:
        """Tell of readers that went or came."""
        for reader in self._all:
            if reader.away is not None:
                self._miss(reader, reader.away)
            elif reader.name in self._known_away or reader.name not in self._gates:
                self._welcome(reader)
            if reader not in self._waited_for:
                reader.rewound = None  # nobody reads there
            elif reader.rewound is not None and reader.name not in self._known_rewound:
                self._known_rewound.add(reader.name)
                self._observer.reader_rewound(reader.name, reader.rewound)

    def _miss(self, reader: Reader, reason: str) -> None:
        holds = reader in self._waited_for
        self._observer.reader(reader.name, f"away: {reason}", holds=holds)
        if reader.name not in self._known_away:
            self._known_away.add(reader.name)
            event(logging.WARNING, "reader-away", reader=reader.name, reason=reason, w="held" if holds else "going on")

    def _welcome(self, reader: Reader) -> None:
        if reader.name in self._known_away:
            self._known_away.remove(reader.name)
            event(logging.INFO, "reader-back", reader=reader.name)
        identity = reader.identity
        if identity is None:
            return
        if identity.incarnation is None and reader.name not in self._gates:
            fix = f"GRANT pg_monitor TO {quoted(identity.user)}"
            event(logging.WARNING, "reader-unrecognised", reader=reader.name, why=_UNRECOGNISED, fix=fix)
        self._tell_gate(reader)

    def _tell_gate(self, reader: Reader) -> None:
        """Tell the gate of a reader, and why, if it is a new one."""
        gate, why = self._gate_of(reader)
        was = self._gates.get(reader.name)
        if was != gate:
            self._gates[reader.name] = gate
            before = {} if was is None else {"was": was}
            event(logging.INFO, "gate", reader=reader.name, gate=gate, **before, why=why)

    def _judge(self) -> None:
        """Look at what the answers say of the readers themselves."""
        for reader in self._all:
            if reader.answer is None:
                continue
            self._tell_gate(reader)
            self._report(reader)
            if self._diverged(reader):
                raise GapError(_apart(reader))

    def _report(self, reader: Reader) -> None:
        if reader.answer is not None:
            text = _told(reader.answer, self._gates[reader.name])
            self._observer.reader(reader.name, reader.rewound or text, holds=reader.rewound is not None)

    def _diverged(self, reader: Reader) -> bool:
        """Whether a reader is a primary beside the source: what the source sends never comes to it."""
        if reader.identity is None or self._source.identity is None:
            return False
        primaries = not _recovering(reader) and not _recovering(self._source)
        return primaries and reader.identity.server != self._source.identity.server


_UNRECOGNISED = "the role may not see whether the node restarted, so each lost connection empties the cache"


def _recovering(reader: Reader) -> bool:
    if reader.answer is not None:
        return reader.answer.in_recovery
    return reader.identity is not None and reader.identity.in_recovery


def _apart(reader: Reader) -> str:
    return f"{reader.name} is a primary beside the source and follows it no longer; decode at the primary in charge"


def _told(answer: Answer, gate: str) -> str:
    if not answer.in_recovery:
        return f"{gate} gate, {len(answer.in_progress)} transactions in progress"
    return f"{gate} gate, replayed {format_lsn(answer.replayed or 0)}"
