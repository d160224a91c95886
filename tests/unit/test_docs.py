"""What the pages draw from the code is drawn from the code as it is, and keys go the ways that the diagram shows."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from docs import generated, links, states
from docs.states import OTHERS, Edge, lease_gets
from leasecache.config import open_store
from leasecache.lab import MemcachedServer
from leasecache.lease import DECISIONS, FOREIGN, Hit, Lease, Stale, Stored, Wait
from leasecache.stores.base import Store
from tests import test_layers

FLAGS, TTL, WINDOW, LEASE, ALWAYS = 0x10000001, 100, 50, 10, 1000
NUMBERS = itertools.count()


@pytest.mark.parametrize("page", links.pages(), ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    """What a page shows as generated is what the code makes today."""
    text = page.read_text(encoding="utf-8")
    assert generated.regenerated(text) == text, "run `make docs`"


def test_every_generated_part_is_on_a_page() -> None:
    """No part is made in vain, and each is on one page."""
    found = [part[1] for page in links.pages() for part in generated.PART.findall(page.read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(generated.GENERATED)


@pytest.mark.parametrize("module", sorted(set(test_layers.SOURCES) - {""}))
def test_every_module_is_on_the_map(module: str) -> None:
    """ARCHITECTURE.md says of each module what it is for, its table of layers apart; packages are where they begin."""
    text = generated.PART.sub("", (links.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    code = "\n".join(itertools.chain(links.FENCE.findall(text), re.findall("`[^`\n]+`", links.FENCE.sub("", text))))
    name = module.rpartition(".")[2]
    assert name in {"__main__", *re.findall(r"\w+", code)}, f"say in ARCHITECTURE.md what {module} is for"


def test_a_changed_table_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table and the diagram are not the last ones by accident: another decision makes another page."""
    text = (links.ROOT / "docs" / "leases.md").read_text(encoding="utf-8")
    [key] = [key for key, decision in DECISIONS.items() if decision.name == "REFRESH"]
    monkeypatch.delitem(DECISIONS, key)
    changed = generated.regenerated(text)
    assert "Fresh --> Refreshing" in text
    assert "Fresh --> Refreshing" not in changed
    assert changed.count("\n| W |") == text.count("\n| W |") - 1


def test_every_state_can_be_reached_and_left() -> None:
    """The diagram has each of its states, that of foreign values apart, which only their writer changes."""
    edges = [*lease_gets(), *OTHERS]
    names = {name for state, name in states.NAMES.items() if state.content is not FOREIGN}
    assert {edge.source for edge in edges} == {edge.target for edge in edges} == names


@pytest.fixture(params=["memory", "memcached"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store of each kind that has the states of the table."""
    if request.param == "memory":
        yield open_store("memory://")
        return
    shared: MemcachedServer = request.getfixturevalue("shared_memcached")
    opened = open_store(shared.url)
    yield opened
    opened.close()


class Key:
    """A key that is brought into a state and taken from there by the commands of the diagram."""

    def __init__(self, store: Store) -> None:
        self.key = b"docs:%d" % next(NUMBERS)
        self.held: Any = None  # the lease of whoever has it
        self._store = store

    def enter(self, state: str) -> None:
        """Bring the key into a state."""
        if state == "Loading":
            self.get()
        elif state != "Empty":
            self.get()
            self.do("lease-set")
        if state in ("Stale", "Replacing"):
            self.do("invalidate softly")
        if state in ("Refreshing", "Replacing"):
            self.get(ALWAYS)

    def get(self, refresh_ahead: float = 0) -> Any:
        """Send a lease-get, and keep the lease if it is won."""
        answer = self._store.lease_get(self.key, LEASE, refresh_ahead)
        self.held = answer if isinstance(answer, Lease) else self.held
        return answer

    def do(self, command: str) -> None:
        """Carry out a command of the diagram."""
        commands: dict[str, Callable[[], Any]] = {
            "lease-set": lambda: self._store.lease_set(self.held, FLAGS, b"value", TTL),
            "release": lambda: self._store.release(self.held),
            "steal": lambda: self._store.steal(self.key, self.held.token, LEASE),
            "invalidate": lambda: self._store.invalidate([self.key]),
            "invalidate softly": lambda: self._store.invalidate([self.key], WINDOW),
        }
        done = commands[command]()
        assert command != "lease-set" or done == Stored()
        assert command != "steal" or isinstance(done, Lease)

    def state(self) -> str:
        """Tell the state by what a lease-get answers that would refresh any value."""
        answer = self._store.lease_get(self.key, LEASE, ALWAYS)
        if isinstance(answer, Lease):
            return "Empty" if answer.value is None else "Fresh" if answer.fresh else "Stale"
        return {Wait: "Loading", Hit: "Refreshing", Stale: "Replacing"}[type(answer)]


COMMANDS = [edge for edge in OTHERS if not edge.command.endswith(" over")]
TIMES = [edge for edge in OTHERS if edge not in COMMANDS]


@pytest.mark.parametrize("edge", COMMANDS, ids=lambda edge: "-".join(edge[:3]))
def test_commands_lead_where_the_diagram_says(edge: Edge, store: Store) -> None:
    """Each arrow of a command that the diagram has besides lease-get is what a store does."""
    key = Key(store)
    key.enter(edge.source)
    key.do(edge.command)
    assert key.state() == edge.target


@pytest.mark.parametrize("edge", lease_gets(), ids=lambda edge: "-".join(edge[:3]))
def test_lease_gets_lead_where_the_table_says(edge: Edge, store: Store) -> None:
    """A lease-get takes a key from one state to the next as the table of decisions has it."""
    key = Key(store)
    key.enter(edge.source)
    key.get(ALWAYS if edge.target == "Refreshing" else 0)
    assert key.state() == edge.target


@pytest.mark.parametrize("edge", TIMES, ids=lambda edge: "-".join(edge[:3]))
def test_time_leads_where_the_diagram_says(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases, values and stale values end when their time is over."""
    import time

    seconds = {"lease_for over": LEASE, "ttl over": TTL, "stale_for over": WINDOW}[edge.command]
    key = Key(open_store("memory://"))
    key.enter(edge.source)
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + seconds + 1)
    assert key.state() == edge.target


@pytest.mark.parametrize("page", links.pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each link names a file and a heading that are there, each test a function in the file that its line links to."""
    assert links.broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    """A page that links to no file, to no heading and to a test that has gone is told so, three times."""
    page = tmp_path / "page.md"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_there(): ...\n")
    page.write_text(
        "# A `heading`, of words\n\n[here](#a-heading-of-words) [gone](none.md) [wrong](page.md#other)\n"
        "[x](tests/test_x.py): `test_there`, `test_gone`\n```\n[code](is.not.read)\n```\n"
    )
    assert [re.sub(r".*: ", "", fault) for fault in links.broken(page)] == [
        "none.md leads nowhere",
        "there is no such heading",
        "`test_gone` is in no file that its line links to",
    ]
