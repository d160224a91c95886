"""A whole simulation: servers, daemon, clients and what goes wrong, from one seed."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from leasecache.errors import LeasecacheError
from leasecache.guard import Record, function_mark, guard_key, ring_mark
from leasecache.invalidation.daemon import Daemon, Work
from leasecache.invalidation.dispatch import Terms
from leasecache.invalidation.mailbox import Naming
from leasecache.invalidation.router import Router
from leasecache.invalidation.settings import SourceSettings
from leasecache.rules import Rule, RuleSet
from tests.simulation.clients import Application, Writer
from tests.simulation.database import GUARDED, ROWS, Database, Node, Primary, Standby
from tests.simulation.faults import Faults
from tests.simulation.kernel import STARTED, Kernel
from tests.simulation.nodes import CacheNode, DaemonRing
from tests.simulation.oracle import Oracle, ViolationError
from tests.simulation.process import Machine, Process, Recorder
from tests.simulation.questions import answer

T = TypeVar("T")

NAMESPACE = "shop"
SLOT = "leasecache"
DURATIONS = (8.0, 8.0, 8.0, 8.0, 20.0, 60.0)  # virtual s until everything heals
HEAL_WITHIN = 120.0  # virtual s until everything is acknowledged and every node vouched for again
TOPOLOGIES = ("primary", "standby", "replay", "both")  # where is decoded, and where fills read
MOST_KEYS = 2 * ROWS  # that a transaction may touch
RULES = RuleSet(
    namespace=NAMESPACE,
    rules=tuple(
        Rule(
            function=f"get_{table}",
            template=f"{table}:{{x}}",
            kinds={"x": "int"},
            schema="public",
            table=table,
            fields={"x": column},
        )
        for table, column in (("media", "id"), ("comments", "media_id"))
    ),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is not left to the dice."""

    topology: str | None = None
    faults: tuple[str, ...] = ()
    seconds: float | None = None  # virtual, until everything heals
    journal: float | None = None  # MiB
    guard_ttl: float | None = None  # s
    spares: int | None = None
    loses_slots: bool | None = None


@dataclass
class Report:
    """What came of a simulation."""

    seed: int
    fault: str | None = None
    steps: int = 0
    seconds: float = 0.0  # virtual
    counts: dict[str, int] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def story(self) -> str:
        """Tell what happened before the violation."""
        return "\n".join([f"seed {self.seed}: {self.fault or 'no violation'}", *self.history])


class World:
    """One simulation."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.kernel = kernel = Kernel(seed)
        dice = kernel.random
        self.seed, self.plan = seed, plan or Plan()
        self.topology = self.plan.topology or dice.choice(TOPOLOGIES)
        self.loses_slots = _given(self.plan.loses_slots, dice.random() < 0.3)
        self.guard = guard_key(NAMESPACE)
        database = Database(kernel)
        self.oracle = Oracle(database)
        self.primary = Primary(database, "primary")
        count = 0 if self.topology == "primary" else dice.choice([1, 2])
        self.standbys = [Standby(database, f"standby{number}") for number in range(count)]
        self.source: Node = self.standbys[0] if self.topology == "standby" else self.primary
        self.readers: list[Node] = [*self.standbys]  # where fills read
        if self.topology in ("primary", "both"):
            self.readers.append(self.primary)
        self.source.create_slot(SLOT)
        self.nodes = [CacheNode(kernel, f"node{number}:11211") for number in range(dice.choice([1, 2]))]
        self.guard_ttl = _given(self.plan.guard_ttl, dice.choice([4.0, 20.0]))  # s
        limits = [None, 0.0003, 1.0, 1.0]  # MiB; None = without a journal
        self.journal_limit = _given(self.plan.journal, dice.choice(limits))
        self.directory = Path(tempfile.mkdtemp(prefix="leasecache-simulation-", dir=_memory()))
        self.machine = Machine(kernel, self.oracle, self.find, answer)
        daemons = 1 + _given(self.plan.spares, dice.choice([0, 0, 1]))
        # a spare on another machine has a journal of its own
        shared = dice.random() < 0.5
        self.processes = [
            Process(
                self.machine,
                f"daemon{number}",
                self._daemon,
                self.directory / ("journal" if shared else f"journal{number}"),
            )
            for number in range(daemons)
        ]
        # now and then an application has a ring that the daemon does not serve
        self.applications = [self._application(self.nodes) for _ in range(2)]
        self.applications.append(self._application(self.nodes[: dice.choice([1, 2])]))
        self.writer = Writer(database, self.primary, self.oracle, wholes=dice.random() < 0.5)
        self._database = database

    def _application(self, nodes: Sequence[CacheNode]) -> Application:
        return Application(
            self.oracle,
            nodes,
            self.readers,
            namespace=NAMESPACE,
            ring_name=ring_mark([node.name for node in nodes]),
            rules={rule.template.split(":")[0]: function_mark([rule]) for rule in RULES.rules},
        )

    def find(self, dsn: str) -> Node:
        """Return the database node of a dsn."""
        return next(node for node in (self.primary, *self.standbys) if node.name in dsn)

    def _daemon(self, monitor: Recorder, directory: Path) -> Daemon:
        dsns = [_dsn(node) for node in self.readers if node is not self.source]
        gate = "replay" if self.topology == "replay" else "auto"
        source = SourceSettings(dsn=_dsn(self.source), slot=SLOT, publication="p", gate=gate, readers=tuple(dsns))
        terms = Terms(
            naming=Naming(guarded=True, unguarded=False),
            guard_ttl=self.guard_ttl,
            journal=None if self.journal_limit is None else directory,
            journal_limit=self.journal_limit or 0,  # type: ignore[arg-type]  # a part of one is enough here
        )
        work = Work(
            router=Router(RULES),
            rules=RULES,
            rings=[DaemonRing(self.nodes, NAMESPACE, self.machine.descriptors)],
            terms=terms,
            transaction_keys=MOST_KEYS,
        )
        return Daemon(source, work, monitor)  # type: ignore[arg-type]  # it has whatever a monitor has

    def run(self) -> Report:
        """Simulate until the end, or the first broken promise."""
        kernel, oracle = self.kernel, self.oracle
        report = Report(self.seed)
        try:
            with self.machine.patched():
                self._play()
        except ViolationError as error:
            report.fault = str(error)
        except LeasecacheError as error:
            report.fault = f"{type(error).__name__}: {error}"
        finally:
            with self.machine.patched():
                kernel.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        report.steps, report.seconds = kernel.steps, kernel.now - STARTED
        report.counts, report.history = dict(oracle.counts), list(oracle.history)
        return report

    def _play(self) -> None:
        kernel, oracle = self.kernel, self.oracle
        faults = Faults(self, oracle)
        for actor in (self.writer.run, faults.run, *(each.run for each in self.applications)):
            kernel.spawn(actor)
        kernel.run(_given(self.plan.seconds, kernel.random.choice(DURATIONS)))
        oracle.over = True
        oracle.note("HEAL")
        faults.heal()
        for _ in range(2):  # a slot may be new, and its recovery under way: that is over before W passes anything later
            self._settle()
            kernel.spawn(self.writer.write)
            kernel.run(1.0)
        self._settle()
        self._compare()

    def _settle(self) -> None:
        """Let everything be acknowledged, and every node be vouched for."""
        for _ in range(int(HEAL_WITHIN * 10)):
            self.kernel.run(0.1)
            if self._settled():
                return
        records = [self._record(node) is not None for node in self.nodes]
        at = f"slot {self.source.slots.get(SLOT)} of {self._last:x}, records {records}"
        raise self.oracle.broken(f"not settled within {HEAL_WITHIN} s: {at}")

    @property
    def _last(self) -> int:
        log = self._database.log
        return log[-1].end_lsn if log else 0

    def _settled(self) -> bool:
        slot = self.source.slots.get(SLOT)
        followed = slot is not None and slot.confirmed >= self._last and slot.active is not None
        return followed and not self._database.open and all(self._record(node) is not None for node in self.nodes)

    def _record(self, node: CacheNode) -> Record | None:
        hit = node.engine.look(self.guard)
        return None if hit is None else Record.from_bytes(hit.value)

    def _compare(self) -> None:
        """Hold what the caches have against the database, now that nothing is on its way."""
        readers = [self.kernel.spawn(self._read_all, application) for application in self.applications]
        self.kernel.run(60.0, over=lambda: all(actor.dead for actor in readers))

    def _read_all(self, application: Application) -> None:
        for key in GUARDED:
            value = application.read(key)
            truth = self._database.value(key, self.primary)
            if value is not None and int(value) != truth:
                raise self.oracle.broken(f"{key.decode()} is {int(value):b}, the database says {truth:b}")


def _given(planned: T | None, thrown: T) -> T:
    return thrown if planned is None else planned


def _dsn(node: Node) -> str:
    return f"postgresql://us@{node.name}:5432/app"


def _memory() -> str | None:
    """Return a directory in memory, if there is one: the simulator waits for no disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
