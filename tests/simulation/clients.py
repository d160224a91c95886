"""Applications: writers of transactions, and readers that believe cache nodes as far as the guard record allows."""

from collections.abc import Mapping, Sequence
from typing import Any

from leasecache.errors import NodeError
from leasecache.guard import Record, guard_key, wire_key
from leasecache.lease import Answer, Hit, Lease, Stale
from leasecache.messages import build_message
from leasecache.stores.memory import MemoryStore
from leasecache.stores.ring import ring
from tests.simulation import pgoutput
from tests.simulation.database import GUARDED, RELIDS, ROWS, Database, Node, Primary, Transaction
from tests.simulation.nodes import CacheNode, Command, look
from tests.simulation.oracle import Oracle

ATTEMPTS = 3
LEASE_FOR = 10.0  # s
TTL = 10_000  # s


class Writer:
    """Makes transactions, one after the other."""

    def __init__(self, database: Database, primary: Primary, oracle: Oracle, *, wholes: bool) -> None:
        """`wholes`: some touch more than can be listed."""
        self._database, self._primary, self._oracle, self._wholes = database, primary, oracle, wholes
        self.kernel = database.kernel
        self.pause = 0.0  # s for which every commit waits for a synchronous standby

    def run(self) -> None:
        """Write until the end."""
        kernel = self.kernel
        while not self._oracle.over:
            kernel.sleep(kernel.random.choice([0.001, 0.05, 1.0]) * kernel.random.random())
            if kernel.random.random() < 0.1:
                self._database.write_noise()
            elif self._primary.up:
                self.write()

    def write(self) -> Transaction:
        """Make a transaction: it is flushed, waits, and is shown."""
        kernel, database = self.kernel, self._database
        xid = database.begin()
        kernel.latency(0.01)
        transaction = self._choose(xid)
        life = self._primary.life
        database.flush(transaction)
        pause = max(self.pause, 0.5 if kernel.random.random() < 0.1 else 0.0)
        if pause:
            database.waiting[xid] = None
            kernel.sleep(pause * kernel.random.random())
            database.waiting.pop(xid, None)
        kernel.latency(0.002)
        if life == self._primary.life:
            database.show(transaction)
            self._oracle.note("shown", transaction.told)
        return transaction

    def _choose(self, xid: int) -> Transaction:
        kinds = [self._likes, self._likes, self._move, self._message, self._nothing]
        if self._wholes and self.kernel.random.random() < 0.03:
            kinds = [self._truncate, self._many]
        number = len(self._database.log)
        keys, messages = self.kernel.random.choice(kinds)()
        told = f"transaction {number} of {b' '.join(keys[:4]).decode()}"
        return Transaction(number, xid, tuple(dict.fromkeys(keys)), messages, told=told)

    def _row(self) -> int:
        return min(self.kernel.random.randrange(ROWS), self.kernel.random.randrange(ROWS))

    def _likes(self) -> tuple[list[bytes], list[bytes]]:
        rows = [self._row() for _ in range(self.kernel.random.choice([1, 1, 3]))]
        return [_key("media", row) for row in rows], [pgoutput.update(1, [str(row), "5"]) for row in rows]

    def _move(self) -> tuple[list[bytes], list[bytes]]:
        old, new = self._row(), self._row()
        change = pgoutput.update(2, ["77", str(new)], None if old == new else ["77", str(old)])
        return [_key("comments", old), _key("comments", new)], [change]

    def _message(self) -> tuple[list[bytes], list[bytes]]:
        key = _key("media", self._row())
        content = build_message({key: 0}).parameters[0].encode()
        return [key], [pgoutput.message(1, "leasecache", content)]

    def _nothing(self) -> tuple[list[bytes], list[bytes]]:
        return [], []

    def _truncate(self) -> tuple[list[bytes], list[bytes]]:
        return [_key("comments", row) for row in range(ROWS)], [pgoutput.truncate(RELIDS["comments"])]

    def _many(self) -> tuple[list[bytes], list[bytes]]:
        rows = range(ROWS)
        moves = [pgoutput.update(2, ["77", str(row)]) for row in rows]
        moves += [pgoutput.update(1, [str(row), "5"]) for row in rows]
        moves += [pgoutput.insert(2, [str(100 + n), str(1000 + n)]) for n in range(ROWS)]
        return list(GUARDED), moves


class Application:
    """One process that reads through the cache and fills it from database nodes."""

    def __init__(
        self,
        oracle: Oracle,
        nodes: Sequence[CacheNode],
        readers: Sequence[Node],
        *,
        namespace: str,
        ring_name: bytes,
        rules: Mapping[str, bytes],
    ) -> None:
        self._oracle, self._nodes, self._readers = oracle, nodes, readers
        self.kernel = oracle.kernel
        self._ring = ring([node.name for node in nodes])
        self._guard = guard_key(namespace)
        self._ring_name, self._rules = ring_name, rules
        self._generations: dict[str, int] = {}

    def run(self) -> None:
        """Read until the end."""
        kernel = self.kernel
        while not self._oracle.over:
            kernel.sleep(kernel.random.choice([0.002, 0.05, 0.5]) * kernel.random.random())
            row = min(kernel.random.randrange(ROWS), kernel.random.randrange(ROWS))
            key = _key(kernel.random.choice(list(RELIDS)), row)
            self.read(key)

    def read(self, key: bytes) -> bytes | None:
        """Read a key; return the value if the cache had one that may be believed."""
        due = self._oracle.due(key)
        node = self._nodes[self._ring.owner(key)]
        try:
            answer, generation = self._ask(node, key)
        except NodeError:
            return None
        if isinstance(answer, Hit):
            self._oracle.judge(key, int(answer.value), due, f"generation {generation:x} on {node.name}")
            return answer.value
        if isinstance(answer, Lease) and answer.token is not None and not answer.fresh:
            self._fill(node, key, answer, generation)
        elif isinstance(answer, Stale):
            self._oracle.counts["stale"] += 1
        return None

    def _ask(self, node: CacheNode, key: bytes) -> tuple[Answer | None, int]:
        """Return what may be believed, and the generation that it has; None = bypass."""
        if node.name not in self._generations:
            record = self._judged(key, node.exchange("clients", [look(self._guard)])[0])
            if record is None:
                return None, 0
            self._generations[node.name] = record.generation
        for _ in range(ATTEMPTS):
            used = self._generations[node.name]
            raw, answer = node.exchange("clients", [look(self._guard), _lease_get(wire_key(used, key))])
            record = self._judged(key, raw)
            if record is not None and record.generation == used:
                return answer, used
            self._give_back(node, answer)
            if record is None:
                self._oracle.counts["bypassed"] += 1
                return None, 0
            self._generations[node.name] = record.generation
        return None, 0

    def _judged(self, key: bytes, raw: bytes | None) -> Record | None:
        record = None if raw is None else Record.from_bytes(raw)
        if (
            record is None
            or self._ring_name not in record.rings
            or self._rules[key.decode().split(":")[1]] not in record.rules
        ):
            return None
        return record

    def _give_back(self, node: CacheNode, answer: Answer) -> None:
        if isinstance(answer, Lease) and self.kernel.random.random() < 0.5:
            node.exchange("clients", [lambda engine: engine.release(answer)])

    def _fill(self, node: CacheNode, key: bytes, lease: Lease, generation: int) -> None:
        """Load after the token was issued, and store a good while later."""
        kernel = self.kernel
        kernel.latency(0.01)
        reader = kernel.random.choice(self._readers)
        if not reader.up:
            return
        value = str(reader.database.value(key, reader)).encode()
        self._oracle.note("loaded", f"{key.decode()} = {int(value):b} from {reader.name} for {generation:x}")
        kernel.spawn(self._store, node, lease, value)

    def _store(self, node: CacheNode, lease: Lease, value: bytes) -> None:
        dice = self.kernel.random.random()
        self.kernel.sleep(0.001 if dice < 0.5 else dice * 3 if dice < 0.97 else 9.0)
        try:
            outcome = node.exchange("clients", [lambda engine: engine.lease_set(lease, 1, value, TTL)])[0]
            self._oracle.counts[type(outcome).__name__.lower()] += 1
            self._oracle.note(type(outcome).__name__, f"{lease.key.decode()} = {int(value):b} on {node.name}")
        except NodeError:
            pass

    def clear(self) -> None:
        """Give every node a new generation, as `cache.clear()` does: by compare-and-set, keeping what time is left."""
        for node in self._nodes:
            try:
                self._clear(node)
            except NodeError:
                continue

    def _clear(self, node: CacheNode) -> None:
        for _ in range(ATTEMPTS):
            answer = node.exchange("clients", [lambda engine: engine.lease_get(self._guard, 1.0)])[0]
            record = Record.from_bytes(answer.value) if isinstance(answer, Hit) else None
            if record is None:
                return
            renewed = Record(
                generation=self.kernel.random.getrandbits(63),
                tenure=record.tenure,
                run=record.run,
                rings=record.rings,
                rules=record.rules,
            )
            if node.exchange("clients", [_renewal(self._guard, answer, renewed)])[0]:
                self._oracle.note("cleared", f"{node.name}: generation {renewed.generation:x}")
                return


def _renewal(guard: bytes, seen: Any, record: Record) -> Command:
    def renew(engine: MemoryStore) -> bool:
        left = seen.expires_in
        outcome = engine.lease_set(Lease(guard, seen.token), 1, record.to_bytes(), max(1, int(left)))
        return type(outcome).__name__ == "Stored"

    return renew


def _lease_get(key: bytes) -> Command:
    return lambda engine: engine.lease_get(key, LEASE_FOR)


def _key(table: str, row: int) -> bytes:
    return f"shop:{table}:{row}".encode()
