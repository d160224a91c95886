"""A look at the catalogues now and then, while the stream runs: has anything changed that the daemon relies on?

Postgres sends nothing when a publication loses a table, so somebody has to look. With the event triggers of
`triggers.py` the log says when to look, and what it says counts from exactly there; without them the clock alone does.
A `Loss` is a difference between two looks around which changes may not have been sent: whoever is told gives every
node a new generation once the readers show everything up to its position.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from leasecache.errors import LeasecacheError
from leasecache.invalidation.catalog import Catalog, Publication, Table
from leasecache.invalidation.ddl import needed_columns
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.lint import lint
from leasecache.invalidation.logs import event
from leasecache.invalidation.lsn import parse_lsn
from leasecache.invalidation.source import Connection, ask, connect
from leasecache.invalidation.survey import read_catalog
from leasecache.rules import RuleSet

Name: TypeAlias = tuple[str, str]  # schema, table

PAUSE = 0.2  # s between two looks, however often one is asked for
RETRY_FIRST = 1.0  # s after a look that failed; doubled up to the usual interval
_CLOSING = 2.0  # s that `close` waits for a look under way
_PATIENCE = "select set_config('statement_timeout', '10s', false)"
_POSITION = """
select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text"""
_FILLED = """
select coalesce(pg_relation_size(c.oid), 1) > 0 from pg_class c where c.oid = any(%s::oid[]) order by 1 desc limit 1"""


class Loss(NamedTuple):
    """Why changes may be missing from the stream, and the position by which that had happened."""

    reason: str
    position: int


class Watch:
    """Look in a thread of its own, over a connection of its own; nothing that goes wrong there goes any further."""

    def __init__(
        self, dsn: str, slot: str, publication: str, rules: RuleSet, wake: Callable[[], None], every: float
    ) -> None:
        """Prepare; `wake` is called from the thread when there is something to take, `every` is in seconds."""
        self._where = (dsn, slot, publication)
        self._rules = rules
        self._wake = wake
        self._every = every
        self._lock = threading.Condition()
        self._asked = self._closing = False
        self._begun = self.finished = 0  # numbers of the look that began last, and of the last that succeeded
        self._findings: list[Finding] | None = None
        self._losses: list[Loss] = []
        self._taken: list[Finding] | None = None
        self._before: Catalog | None = None
        self._marks: Mapping[str, str] | None = None
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="leasecache-watch", daemon=True)

    def start(self) -> "Watch":
        """Begin with a look at once."""
        self._thread.start()
        return self

    def ask(self) -> int:
        """Ask for a look soon, one that is under way does not count; return the number that `finished` will reach."""
        with self._lock:
            self._asked = True
            self._lock.notify_all()
            return self._begun + 1

    def take(self) -> list[Finding] | None:
        """Return what is wrong as of the last look, None when that is what was taken last."""
        with self._lock:
            if self._findings is None or self._findings == self._taken:
                return None
            self._taken = self._findings
            return self._taken

    def losses(self) -> list[Loss]:
        """Return the losses found since the last call, each once."""
        with self._lock:
            losses, self._losses = self._losses, []
            return losses

    def marks(self, patience: float = 0.0) -> Mapping[str, str] | None:
        """Return what the last look saw of the tables; wait up to `patience` s for the first one, None = none yet."""
        with self._lock:
            self._lock.wait_for(lambda: self._marks is not None, patience)
            return self._marks

    def close(self) -> None:
        """End the thread; a look that hangs is left behind."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(_CLOSING)

    def _run(self) -> None:
        delay = 0.0
        failing: str | None = None
        while self._rest(delay):
            try:
                self._look()
                delay = self._every
                if failing is not None:
                    event(logging.INFO, "look-works")
                failing = None
            except Exception as error:  # the thread's top loop: the stream goes on without looks
                known = isinstance(error, LeasecacheError)
                self._disconnect()
                delay = min(max(delay * 2, RETRY_FIRST), self._every)
                reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"
                if failing is None:
                    event(logging.WARNING, "look-failed", reason=reason, retry_in=round(delay, 1))
                failing = reason
        self._disconnect()

    def _rest(self, delay: float) -> bool:
        """Wait for the next look; return whether there is to be one."""
        with self._lock:
            self._lock.wait_for(lambda: self._closing, min(delay, PAUSE))
            self._lock.wait_for(lambda: self._closing or self._asked, max(delay - PAUSE, 0))
            self._asked = False
            self._begun += 1
            return not self._closing

    def _look(self) -> None:
        dsn, slot, publication = self._where
        if self._connection is None:
            self._connection = connect(dsn)
            ask(self._connection, _PATIENCE)
        catalog = read_catalog(self._connection, slot, publication, self._rules)
        reasons = [] if self._before is None else list(self._compare(self._connection, self._before, catalog))
        ((position,),) = ask(self._connection, _POSITION)
        findings = [finding for finding in lint(self._rules, catalog) if not finding.note]
        marks = marks_of(catalog, self._rules)
        with self._lock:
            self._before = catalog
            self._marks = self._marks if marks == self._marks else marks
            self._findings = findings
            self._losses += [Loss(reason, parse_lsn(position)) for reason in reasons]
            self.finished = self._begun
            self._lock.notify_all()
        self._wake()

    def _compare(self, connection: Connection, before: Catalog, now: Catalog) -> Iterator[str]:
        yield from compare(before, now, self._rules)
        for name, table in now.tables.items():
            if name in before.tables and (new := _oids(table) - _oids(before.tables[name])):
                filled = ask(connection, _FILLED, sorted(new))
                if filled and filled[0][0]:  # an empty one was just made; this one may have brought its rows along
                    yield f"{_shown(name)} has partitions that were attached with their rows"

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def compare(before: Catalog, now: Catalog, rules: RuleSet) -> Iterator[str]:
    """Return, one sentence each, what has changed between two looks so that changes may not have been sent."""
    needed = needed_columns(before, rules)
    yield from _publication_changes(before, now, needed)
    for name, old in before.tables.items():
        new = now.tables.get(name)
        if new is None or new.oid != old.oid:
            yield f"{_shown(name)} {'is gone' if new is None else 'is another table'}"
        else:
            changes = list(_table_changes(old, new, needed.get(name, frozenset())))
            yield from (f"{_shown(name)} {change}" for change in changes)


def marks_of(catalog: Catalog, rules: RuleSet) -> dict[str, str]:
    """Return what two looks would be compared by, if the process that had the first look were over: thing → what it is.

    Less of it than `compare` has: whatever the stream itself tells may have changed meanwhile.
    """
    publication = catalog.publication
    facts: dict[tuple[str, ...], object] = {
        (): publication and (publication.oid, sorted(publication.operations.items()), publication.via_root)
    }
    needed = needed_columns(catalog, rules)
    for schema, name in {(rule.schema, rule.table) for rule in rules.rules}:
        table = catalog.tables.get((schema, name))
        sent = None if publication is None else publication.tables.get((schema, name))
        facts[schema, name] = table and (
            table.oid,
            table.named,
            table.kind,
            table.persistence,
            sent and sent.row_filter,
        )
        leaves = () if table is None else table.partitions
        attached = [(one.oid, one.attached, None if one.tells_truncate else one.file) for one in leaves]
        facts[schema, name, "partitions"] = attached
        for column in needed.get((schema, name), ()):
            listed = sent is not None and (sent.columns is None or column in sent.columns)
            facts[schema, name, "columns", column] = table and _identified(table, column), listed
    return {json.dumps(thing): repr(fact) for thing, fact in facts.items()}


def _publication_changes(before: Catalog, now: Catalog, needed: Mapping[Name, frozenset[str]]) -> Iterator[str]:
    name, old, new = now.publication_name, before.publication, now.publication
    if old is None or new is None:
        if old is not new:
            yield f"publication {name} {'is gone' if new is None else 'was not there'}"
        return
    if old.oid != new.oid:
        yield f"publication {name} is another one"
    elif (old.operations, old.via_root) != (new.operations, new.via_root):
        yield f"publication {name} sends other operations"
    for table, columns in needed.items():
        if _sent(old, table, columns) != _sent(new, table, columns):
            yield f"publication {name} sends another part of {_shown(table)}"


def _sent(publication: Publication, table: Name, needed: frozenset[str]) -> tuple[bool, str | None]:
    """Return whether the table's key columns are sent, and of which rows."""
    published = publication.tables.get(table)
    if published is None:
        return False, None
    return published.columns is None or needed <= published.columns, published.row_filter


def _table_changes(old: Table, new: Table, needed: frozenset[str]) -> Iterator[str]:
    if _oids(old) - _oids(new):
        yield "has lost partitions, with their rows"
    if _attached(old) - _attached(new) and not _oids(old) - _oids(new):
        yield "was without some of its partitions for a while"
    if _emptied(old, new):
        yield "has partitions that were truncated or rewritten"
    if old.named != new.named:
        yield "had another name, schema or owner for a while"
    if (old.kind, old.persistence) != (new.kind, new.persistence):
        yield "is another kind of table"
    if any(_identified(old, column) != _identified(new, column) for column in needed):
        yield "has another key column"
    carried = {one.oid: needed <= one.identity_columns for one in (new, *new.partitions)}
    if any(needed <= one.identity_columns and not carried.get(one.oid, True) for one in (old, *old.partitions)):
        yield "no longer sends the old values of its key columns"


def _identified(table: Table, column: str) -> tuple[str, int] | None:
    """Return what tells a column from another one that has its name now."""
    found = table.columns.get(column)
    return None if found is None else (found.type, found.position)


def _oids(table: Table) -> set[int]:
    return {leaf.oid for leaf in table.partitions}


def _emptied(old: Table, new: Table) -> bool:
    """Return whether a partition has another file, and had no trigger all the while that would have told."""
    before = {leaf.oid: leaf for leaf in old.partitions}
    now = [(before[leaf.oid], leaf) for leaf in new.partitions if leaf.oid in before]
    return any(was.file != leaf.file and not (was.tells_truncate and leaf.tells_truncate) for was, leaf in now)


def _attached(table: Table) -> set[tuple[int, str]]:
    return {(leaf.oid, leaf.attached) for leaf in table.partitions}


def _shown(name: Name) -> str:
    return ".".join(name)
