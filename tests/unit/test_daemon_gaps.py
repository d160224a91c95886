"""What the daemon's loop makes of changes that may have been lost, with a source that says what the test wants."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.daemon import Daemon, Work
from leasecache.invalidation.dispatch import Terms
from leasecache.invalidation.drift import Loss
from leasecache.invalidation.journal import Position
from leasecache.invalidation.mailbox import Naming
from leasecache.invalidation.router import Router
from leasecache.invalidation.settings import SourceSettings
from leasecache.invalidation.status import Monitor
from tests.fix_desk import RULES, GuardedNode
from tests.unit.test_stream_dispatch import FakeRing

Making = Callable[[], Daemon]


class FakeWatch:
    """A look at the catalogues that ends, and finds a loss, while somebody asks what was found before."""

    def __init__(self) -> None:
        self.finished = 0
        self._found: list[Loss] = []

    def ask(self) -> int:
        """Promise the first look."""
        return 1

    def marks(self) -> None:
        """Know nothing of the tables."""

    def take(self) -> None:
        """Find nothing."""

    def losses(self) -> list[Loss]:
        """Return what was found before."""
        losses, self._found = self._found, [] if self.finished else [Loss("the table is gone", 5)]
        self.finished = 1
        return losses


class FakeSource:
    """A replication connection to a server of some cluster and timeline."""

    def __init__(self, system: str, timeline: str) -> None:
        self._identity = system, timeline

    def query(self, sql: str) -> list[tuple[str, ...]]:
        """Answer what the daemon asks of a server."""
        if sql == "IDENTIFY_SYSTEM":
            return [self._identity]
        return [("f",)] if "recovery" in sql else [("server",)]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Making]:
    """Make daemons with one journal, one at a time."""
    made: list[Daemon] = []
    node = GuardedNode()

    def make() -> Daemon:
        for before in made:
            before._dispatcher.close()
        terms = Terms(naming=Naming(), guard_ttl=60.0, journal=tmp_path)
        work = Work(router=Router(RULES), rules=RULES, rings=[FakeRing(node)], terms=terms)  # type: ignore[arg-type]
        made.append(Daemon(SourceSettings(dsn="host=nowhere", slot="slot", publication="p"), work, Monitor()))
        made[-1]._dispatcher._readers = lambda: 1
        return made[-1]

    yield make
    for one in made:
        one._dispatcher.close()
        one._readers.close()


def test_a_look_that_ends_while_it_is_asked_for(daemon: Making) -> None:
    """Guard: `finished` is read first. W does not pass a command before what the look has found is acted upon."""
    running, looked = daemon(), []
    running._watch = FakeWatch()  # type: ignore[assignment]
    follower: Any = SimpleNamespace(drifts=["ALTER TABLE"], looked=lambda: looked.append(True))
    running._look, running._looked_for = 1, 1
    running._look_out(follower)
    assert not looked
    with pytest.raises(SourceError, match="the table is gone"):
        running._look_out(follower)
    assert not looked


def test_a_daemon_that_ends_before_it_has_recovered(daemon: Making) -> None:
    """Guard: `doubt`. The next process does not go on as if nothing had been lost."""
    running = daemon()
    running._dispatcher.begin("system", 0, 0.0, known=running._dispatcher.knows("system", 0))
    running._dispatcher._journal.save(running._dispatcher._journal.open() or _position())  # type: ignore[union-attr]
    assert daemon()._dispatcher.knows("system", 10)
    running = daemon()
    running._dispatcher.begin("system", 10, 0.0, known=running._dispatcher.knows("system", 10))
    running._note_gap("a publication has lost a table", free=True)
    assert not daemon()._dispatcher.knows("system", 10)


@pytest.mark.parametrize(("system", "timeline"), [("another", "1"), ("system", "2")])
def test_positions_of_another_log(daemon: Making, system: str, timeline: str) -> None:
    """Guard: `_recognise` forgets them. A log that is shorter would have to grow to them before W could move."""
    running = daemon()
    running._readers = SimpleNamespace(server="server", released=0, close=lambda: None)  # type: ignore[assignment]
    running._recognise(FakeSource("system", "1"))  # type: ignore[arg-type]
    running._readers.released = 10**9
    running._recognise(FakeSource("system", "1"))  # type: ignore[arg-type]
    assert running._readers.released == 10**9
    running._recognise(FakeSource(system, timeline))  # type: ignore[arg-type]
    assert (running._readers.released, running._gap is not None) == (0, True)


def test_a_spare_whose_server_restarts(daemon: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: `_stood_by`. A source that is away is wrong settings only to who has never seen the slot."""
    running = daemon()
    monkeypatch.setattr(running, "_rest", lambda seconds: False)

    def broken() -> None:
        raise SourceError("the server restarts")

    with pytest.raises(ConfigError):
        running._guarded(broken)
    held: Any = SimpleNamespace(query=lambda sql: [("reserved", "0/0", "7")])
    assert not running._await_slot(held)
    running._guarded(broken)


def _position() -> Position:
    return Position("system", 10, 1)
