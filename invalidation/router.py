"""From changed rows to cache keys: the rules, compiled against the relations that the stream describes.

The key of the old row and the key of the new row are both touched. What the stream does not say is never guessed: it is
counted as a Loss with its reason.
"""

from collections.abc import Iterable
from typing import NamedTuple

from leasecache._accel import Renderer
from leasecache.errors import DefinitionError, SourceError
from leasecache.invalidation.pgoutput import UNCHANGED, Change, Delete, Insert, Relation, Truncate, Tuple, Update, Value
from leasecache.invalidation.stream import Touched
from leasecache.invalidation.walker import Walker
from leasecache.keys import KeyTemplate, key_prefix
from leasecache.messages import read_payload
from leasecache.rules import Rule, RuleSet


class Route(NamedTuple):
    """One rule, against the columns of one relation."""

    rule: Rule
    renderer: Renderer
    fields: tuple[int, ...]  # positions of the key fields' columns, in template order
    covered: bool  # the replica identity holds all of them
    matters: tuple[int, ...] | None  # positions whose updates matter, None = every update


class Target(NamedTuple):
    """What changes of one relation touch."""

    table: str
    width: int  # columns
    keys: frozenset[int]  # positions that old tuples carry
    routes: tuple[Route, ...]
    broken: tuple[Rule, ...]  # rules that name a column the relation does not send


class Router:
    """Turn changes into keys."""

    def __init__(self, rules: RuleSet) -> None:
        """Compile `rules`. Raises DefinitionError when a template, its kinds and its columns do not go together."""
        self._rules: dict[tuple[str, str], list[tuple[Rule, tuple[str, ...], Renderer]]] = {}
        self._targets: dict[int, Target | None] = {}
        self.walker = Walker()
        self._prefix = key_prefix(rules.namespace)
        for rule in rules.rules:
            template = KeyTemplate.parse(rule.template, rule.kinds)
            if set(template.fields) != set(rule.fields):
                raise DefinitionError(f"rule of {rule.function}: its columns are not those of {rule.template!r}")
            columns = tuple(rule.fields[name] for name in template.fields)
            renderer = template.renderer(rules.namespace)
            self._rules.setdefault((rule.schema, rule.table), []).append((rule, columns, renderer))

    def describe(self, relation: Relation) -> None:
        """Compile the rules of a relation, or note that it has none; a later description replaces an earlier one."""
        compiled = self._rules.get((relation.schema, relation.table))
        target = None if compiled is None else _target(relation, compiled)
        self._targets[relation.relid] = target
        self.walker.learn(relation.relid, target)

    def route(self, change: Change, touched: Touched) -> None:
        """Add the keys that `change` touches. Raises SourceError when its relation was never described."""
        if isinstance(change, Truncate):
            self._truncate(change, touched)
            return
        target = self._find(change.relid)
        if target is None:
            return
        touched.table_rows[target.table] += 1
        for rule in target.broken:
            touched.lose("column", target.table, rule.function)
        for route in target.routes:
            for key in _keys(change, target, route, touched):
                touched.touch(key, route.rule.stale_for)
                touched.rule_keys[route.rule.function, target.table] += 1

    def hear(self, content: bytes, touched: Touched) -> str | None:
        """Add what a commit message says about this namespace; return what of it was not understood."""
        keys, namespaces, fault = read_payload(content)
        for key, stale_for in keys.items():
            if key.startswith(self._prefix):
                touched.name(key, stale_for)
        if any((named + b":").startswith(self._prefix) for named in namespaces):
            touched.lose("namespace")
        return fault

    def _truncate(self, change: Truncate, touched: Touched) -> None:
        for relid in change.relids:
            target = self._find(relid)
            if target is not None:
                touched.table_rows[target.table] += 1
                touched.lose("truncate", target.table)

    def _find(self, relid: int) -> Target | None:
        try:
            return self._targets[relid]
        except KeyError:
            raise SourceError(f"a change of relation {relid} arrived before its description") from None


def _target(relation: Relation, compiled: Iterable[tuple[Rule, tuple[str, ...], Renderer]]) -> Target:
    positions = {column.name: i for i, column in enumerate(relation.columns)}
    keys = frozenset(i for i, column in enumerate(relation.columns) if column.key)
    routes, broken = [], []
    for rule, columns, renderer in compiled:
        if not positions.keys() >= {*columns, *(rule.columns or ())}:
            broken.append(rule)
            continue
        fields = tuple(positions[name] for name in columns)
        matters = None if rule.columns is None else tuple(positions[name] for name in rule.columns) + fields
        routes.append(Route(rule, renderer, fields, keys.issuperset(fields), matters))
    return Target(f"{relation.schema}.{relation.table}", len(relation.columns), keys, tuple(routes), tuple(broken))


def _keys(change: Insert | Update | Delete, target: Target, route: Route, touched: Touched) -> list[bytes]:
    if isinstance(change, Insert):
        return _rendered(change.new, target, route, touched)
    if isinstance(change, Update):
        return _update_keys(change, target, route, touched)
    return _delete_keys(change, target, route, touched)


def _update_keys(change: Update, target: Target, route: Route, touched: Touched) -> list[bytes]:
    old = change.old
    if change.old_kind == "O" and old is not None and not _matters(route, old, change.new):
        return []
    new = change.new if old is None else _filled(change.new, old, target.keys)
    keys = _rendered(new, target, route, touched)
    if not route.covered:
        touched.lose("identity", target.table, route.rule.function)
    elif old is not None:
        keys += _rendered(old, target, route, touched)
    return keys  # without an old tuple the identity, and so the key, did not change


def _delete_keys(change: Delete, target: Target, route: Route, touched: Touched) -> list[bytes]:
    if route.covered:
        return _rendered(change.old, target, route, touched)
    touched.lose("identity", target.table, route.rule.function)
    return []


def _matters(route: Route, old: Tuple, new: Tuple) -> bool:
    if route.matters is None:
        return True
    return any(_at(new, i) is not UNCHANGED and _at(new, i) != _at(old, i) for i in route.matters)


def _filled(new: Tuple, old: Tuple, keys: frozenset[int]) -> Tuple:
    """Return `new` with unchanged values taken from `old`, as far as `old` carries them."""
    if UNCHANGED not in new:
        return new
    return tuple(_at(old, i) if v is UNCHANGED and i in keys else v for i, v in enumerate(new))


def _rendered(row: Tuple, target: Target, route: Route, touched: Touched) -> list[bytes]:
    values: list[bytes | None] = []
    for i in route.fields:
        value = _at(row, i)
        if value is UNCHANGED:
            touched.lose("toast", target.table, route.rule.function)
            return []
        values.append(value)
    try:
        return [route.renderer.from_text(values)]
    except ValueError:  # the column's text is not of the rule's kind
        touched.lose("value", target.table, route.rule.function)
        return []


def _at(row: Tuple, position: int) -> Value:
    try:
        return row[position]
    except IndexError:
        raise SourceError(f"a tuple of {len(row)} columns is shorter than its relation") from None
