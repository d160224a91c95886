"""The gate's questions to real nodes: which gate each has, who is refused, who is away, who may have gone back."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation import reader as reader_module
from leasecache.invalidation.gate import QUESTION, View
from leasecache.invalidation.readers import Readers
from leasecache.invalidation.settings import SourceSettings
from leasecache.invalidation.source import readdressed
from leasecache.lab import TcpProxy, wait_until
from leasecache.lab.servers import HOST
from tests.fix_servers import PostgresPair

WITHIN = 60.0  # s


class Observer:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[str, bool]] = {}
        self.rewound: list[str] = []

    def reader(self, name: str, text: str, *, holds: bool) -> None:
        """Remember the last word on a reader."""
        self.told[name] = text, holds

    def reader_rewound(self, name: str, reason: str) -> None:
        """Remember a reason."""
        self.rewound.append(reason)


class Panel:
    """Readers, and how to ask them."""

    def __init__(self, dsn: str, *readers: str, gate: str = "auto") -> None:
        settings = SourceSettings(dsn=dsn, slot="s", publication="p", gate=gate, readers=readers)
        self.observer = Observer()
        self.readers = Readers(settings, self.observer, lambda: None)

    def view(self) -> View:
        """Ask, and wait for the answers."""
        self.readers.ask()
        return wait_until(self.readers.answer, WITHIN, f"answers; {self.observer.told}")


@pytest.fixture
def panel(postgres_pair: PostgresPair) -> Iterator[Any]:
    """Open a panel, which is closed in the end."""
    with ExitStack() as stack:

        def make(dsn: str, *readers: str, gate: str = "auto") -> Panel:
            made = Panel(dsn, *readers, gate=gate)
            stack.callback(made.readers.close)
            made.readers.open()
            return made

        yield make


@pytest.fixture
def dsns(postgres_pair: PostgresPair) -> tuple[str, str]:
    """The primary's dsn and the standby's."""
    return postgres_pair.primary.dsn(), postgres_pair.standby.dsn()


def test_every_node_has_the_gate_of_its_role(panel: Any, dsns: tuple[str, str], caplog: Any) -> None:
    """`auto` says for each node which gate it has and why; under `replay` the source has none."""
    caplog.set_level("INFO")
    primary, standby = dsns
    both = panel(primary, standby)
    assert [answer.in_recovery for answer in both.view().answers] == [False, True]
    assert both.readers.gate == "snapshot"
    assert panel(standby, primary).readers.gate == "standby"
    replay = panel(primary, standby, gate="replay")
    assert [answer.in_recovery for answer in replay.view().answers] == [True]
    assert replay.readers.gate == "none"
    told = [record.fields for record in caplog.records if record.getMessage() == "gate"]
    gates = [fields["gate"] for fields in told]
    assert gates == ["snapshot", "replay", "standby", "snapshot", "none", "replay"]
    assert all(fields["why"] for fields in told)


def test_a_balancer_is_refused(panel: Any, dsns: tuple[str, str], postgres_pair: PostgresPair) -> None:
    """A dsn whose connections lead to different servers is refused, as source and as reader. Guard: two connections."""
    primary, _ = dsns
    with TcpProxy(postgres_pair.primary.port, postgres_pair.standby.port) as proxy:
        balancer = readdressed(primary, host=HOST, port=proxy.port)
        with pytest.raises(ConfigError, match="not a balancer"):
            panel(balancer)
        with pytest.raises(ConfigError, match="not a balancer"):
            panel(primary, balancer)
        proxy.reset()


def test_a_reader_named_twice_is_refused(panel: Any, dsns: tuple[str, str]) -> None:
    """The source is a reader by itself, and twins would only confuse the figures."""
    primary, standby = dsns
    with pytest.raises(ConfigError, match="named twice"):
        panel(primary, standby, standby)
    with pytest.raises(ConfigError, match="named twice"):
        panel(primary, primary)


def test_a_reader_of_another_cluster_is_refused(panel: Any, dsns: tuple[str, str], monkeypatch: Any) -> None:
    """What the source sends never comes to another cluster. Guard: the system identifier."""
    other = reader_module.reach

    def reach(dsn: str) -> reader_module.Link:
        link = other(dsn)
        return link if dsn == dsns[0] else link._replace(identity=link.identity._replace(system="1"))

    monkeypatch.setattr(reader_module, "reach", reach)
    with pytest.raises(ConfigError, match="another database cluster"):
        panel(*dsns)


def test_a_second_primary_is_refused(panel: Any, dsns: tuple[str, str], monkeypatch: Any) -> None:
    """A reader that takes writes of its own shows nothing of the source's. Guard: at most one primary."""
    other = reader_module.reach

    def reach(dsn: str) -> reader_module.Link:
        link = other(dsn)
        return link._replace(identity=link.identity._replace(in_recovery=False))

    monkeypatch.setattr(reader_module, "reach", reach)
    with pytest.raises(ConfigError, match="primary beside the source"):
        panel(*dsns)


def test_a_pooler_is_noticed(panel: Any, dsns: tuple[str, str], monkeypatch: Any) -> None:
    """An answer of another server process than we connected to says nothing about crashes. Guard: the process's pid."""
    asked = panel(dsns[0])
    asked.view()
    question = QUESTION.replace(b"pg_backend_pid()", b"pg_backend_pid() + 1")
    monkeypatch.setattr(reader_module, "QUESTION", question)
    asked.readers.ask()
    wait_until(lambda: asked.readers.answer() or asked.readers.doubtful, WITHIN, "the loss of a connection")
    assert "pooler" in str(asked.observer.told)


def test_a_reader_that_says_nothing_is_away(
    panel: Any, dsns: tuple[str, str], postgres_pair: PostgresPair, monkeypatch: Any
) -> None:
    """Silence holds the gate and is told; a reader that is found again and did not restart is not in doubt."""
    monkeypatch.setattr(reader_module, "PATIENCE", 0.2)
    with TcpProxy(postgres_pair.standby.port) as proxy:
        behind = readdressed(dsns[1], host=HOST, port=proxy.port)
        asked = panel(dsns[0], behind)
        first = asked.readers.mark
        assert first is not None
        proxy.stall("replies")
        asked.readers.ask()
        wait_until(lambda: asked.readers.answer() or asked.readers.doubtful, WITHIN, "a reader that is away")
        assert asked.readers.doubtful
        assert asked.readers.asked
        assert asked.readers.mark is None
        name = f"{HOST}:{proxy.port}"
        wait_until(lambda: asked.readers.answer() or asked.observer.told.get(name, ("", False))[1], WITHIN, "a word")
        proxy.flow()
        proxy.reset()
        view = wait_until(asked.readers.answer, WITHIN, f"answers; {asked.observer.told}")
        assert (view.rewound, asked.readers.mark) == (None, first)


def test_a_role_that_may_not_see_restarts(panel: Any, postgres_pair: PostgresPair, database: str, caplog: Any) -> None:
    """Without pg_monitor each lost connection counts as a restart, and the log says what to grant.

    Guard: an incarnation that is not known differs from any other.
    """
    primary = postgres_pair.primary
    role = f"blind_{database}"
    primary.query(f"create role {role} login")
    try:
        asked = panel(primary.dsn(database, user=role))
        assert [record.fields["fix"] for record in caplog.records] == [f'GRANT pg_monitor TO "{role}"']
        assert (asked.view().rewound, asked.readers.mark) == (None, None)
        primary.query(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'")
        wait_until(lambda: asked.readers.answer() or asked.readers.doubtful, WITHIN, "the loss of a connection")
        assert "may have restarted" in str(asked.view().rewound)
        assert asked.observer.rewound
        asked.readers.trust()
        assert asked.view().rewound is None
        unread = panel(primary.dsn(database, user=role), postgres_pair.standby.dsn(database), gate="replay")
        primary.query(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'")
        told = unread.observer.told
        wait_until(lambda: unread.view() and "away" in told.get(primary.address, " ")[0], WITHIN, "a loss")
        wait_until(lambda: unread.view() and "away" not in told[primary.address][0], WITHIN, "its end")
        assert (len(unread.view().answers), unread.view().rewound, told[primary.address][1]) == (1, None, False)
    finally:
        primary.query(f"drop role {role}")


def test_the_source_must_be_there(panel: Any, dsns: tuple[str, str]) -> None:
    """Without the source nothing can begin; a reader that is not there yet is waited for."""
    nowhere = readdressed(dsns[0], host=HOST, port=1)
    with pytest.raises(SourceError, match="refused"):
        panel(nowhere)
    waiting = panel(dsns[0], nowhere)
    assert waiting.readers.doubtful
    waiting.readers.ask()
    wait_until(lambda: waiting.readers.answer() or waiting.observer.told, WITHIN, "a word")
    assert waiting.observer.told[f"{HOST}:1"][1]
