"""Routing of changed rows to keys: both rows, every identity, nothing guessed."""

import pytest

from leasecache.errors import DefinitionError, SourceError
from leasecache.invalidation.pgoutput import UNCHANGED, Change, Column, Delete, Insert, Relation, Truncate, Update
from leasecache.invalidation.router import Router
from leasecache.invalidation.stream import Loss, Touched
from leasecache.rules import Rule, RuleSet


def rule(**changes: object) -> Rule:
    """Return the rule of a comment list, with `changes`."""
    values: dict[str, object] = {
        "function": "get_comments",
        "template": "comments:{media_id}",
        "kinds": {"media_id": "int"},
        "schema": "public",
        "table": "comments",
        "fields": {"media_id": "media_id"},
        **changes,
    }
    return Rule(**values)  # type: ignore[arg-type]


def relation(identity: str, keys: str, columns: str = "id media_id body") -> Relation:
    """Describe the table comments, whose old rows carry the columns `keys`."""
    described = tuple(Column(name=name, key=name in keys.split(), type_oid=25) for name in columns.split())
    return Relation(1, "public", "comments", identity, described)


DEFAULT, INDEX = relation("d", "id"), relation("i", "id media_id")
FULL = relation("f", "id media_id body")


def routed(described: Relation, change: Change, *rules: Rule) -> Touched:
    """Return what `change` touches."""
    router = Router(RuleSet(namespace="shop", rules=rules or (rule(),)))
    router.describe(described)
    touched = Touched()
    router.route(change, touched)
    return touched


def keys(*media: int) -> dict[bytes, float]:
    """Return the touched keys of these media."""
    return {b"shop:comments:%d" % one: 0.0 for one in media}


def test_an_insert_touches_the_new_row() -> None:
    """An insert touches the key of its row, under any identity."""
    assert routed(DEFAULT, Insert(1, (b"1", b"7", b"x"))).keys == keys(7)


def test_a_key_moving_update_touches_both_rows() -> None:
    """Moving a comment to another media touches the lists of both."""
    change = Update(1, "K", (b"1", b"7", None), (b"1", b"8", b"x"))
    assert routed(INDEX, change).keys == keys(7, 8)
    assert routed(FULL, change._replace(old_kind="O")).keys == keys(7, 8)


def test_an_update_without_an_old_row_keeps_its_key() -> None:
    """Without an old tuple the identity did not change, so the new row's key is the old one's."""
    touched = routed(INDEX, Update(1, None, None, (b"1", b"7", b"x")))
    assert (touched.keys, touched.losses) == (keys(7), {})


def test_an_identity_that_lacks_the_key_is_a_loss() -> None:
    """When the old key is not sent, the new one is touched and the loss is counted, never guessed."""
    loss = Loss("identity", "public.comments", "get_comments")
    touched = routed(DEFAULT, Update(1, None, None, (b"1", b"8", b"x")))
    assert (touched.keys, touched.losses) == (keys(8), {loss: 1})
    moved = routed(DEFAULT, Update(1, "K", (b"1", None, None), (b"2", b"8", b"x")))
    assert (moved.keys, moved.losses) == (keys(8), {loss: 1})
    deleted = routed(DEFAULT, Delete(1, "K", (b"1", None, None)))
    assert (deleted.keys, deleted.losses) == ({}, {loss: 1})


def test_a_delete_touches_the_old_row() -> None:
    """A delete touches the key that its identity columns give."""
    assert routed(INDEX, Delete(1, "K", (b"1", b"7", None))).keys == keys(7)


def test_null_is_a_value() -> None:
    """A null key column is rendered like None, when the identity says that it is null."""
    assert routed(FULL, Delete(1, "O", (b"1", None, b"x"))).keys == {b"shop:comments:!": 0.0}


def test_an_unchanged_value_is_the_old_one() -> None:
    """An unchanged large value is taken from the old row; without one it is a loss."""
    bodies = rule(template="body:{body}", kinds={"body": "str"}, fields={"body": "body"})
    known = routed(FULL, Update(1, "O", (b"1", b"7", b"x"), (b"2", b"7", UNCHANGED)), bodies)
    assert (known.keys, known.losses) == ({b"shop:body:x": 0.0}, {})
    unknown = routed(relation("i", "body"), Update(1, None, None, (b"2", b"7", UNCHANGED)), bodies)
    assert (unknown.keys, unknown.losses) == ({}, {Loss("toast", "public.comments", "get_comments"): 1})


@pytest.mark.parametrize(
    ("new", "touches"),
    [
        ((b"1", b"7", b"x"), False),
        ((b"1", b"7", UNCHANGED), False),
        ((b"1", b"7", b"y"), True),
        ((b"1", b"7", None), True),
        ((b"1", b"8", b"x"), True),  # the key moved
        ((b"2", b"7", b"x"), False),
    ],
)
def test_columns_filter_updates(new: tuple[bytes, ...], touches: bool) -> None:
    """With columns=, an update matters when one of them or the key changed, as far as FULL tells."""
    filtered = rule(columns=("body",))
    assert bool(routed(FULL, Update(1, "O", (b"1", b"7", b"x"), new), filtered).keys) is touches


def test_columns_do_not_filter_without_full() -> None:
    """Without whole old rows every update matters."""
    assert routed(INDEX, Update(1, None, None, (b"1", b"7", b"x")), rule(columns=("body",))).keys == keys(7)


def test_several_rules_of_one_key() -> None:
    """A key that several rules touch may be served stale for the least of their times."""
    change = Insert(1, (b"1", b"7", b"x"))
    assert routed(INDEX, change, rule(stale_for=60.0), rule(stale_for=5.0), rule(stale_for=9.0)).keys == {
        b"shop:comments:7": 5.0
    }


def test_composite_keys_follow_the_template() -> None:
    """Columns are rendered in the order of the template, not of the table."""
    both = rule(
        template="c:{media}:{id}", kinds={"id": "int", "media": "int"}, fields={"id": "id", "media": "media_id"}
    )
    assert routed(INDEX, Insert(1, (b"1", b"7", b"x")), both).keys == {b"shop:c:7:1": 0.0}


def test_truncate_is_a_loss() -> None:
    """A truncated table is counted, because its rows are not sent; tables without rules are not."""
    touched = routed(FULL, Truncate((1,), 0))
    assert (touched.losses, touched.everything) == ({Loss("truncate", "public.comments", "*"): 1}, "truncate")
    assert not routed(FULL._replace(table="other"), Truncate((1,), 0)).losses


def test_what_is_counted() -> None:
    """Rows are counted by table, keys by function and table, every time they are rendered."""
    touched = routed(INDEX, Update(1, "K", (b"1", b"7", None), (b"1", b"8", b"x")), rule(), rule(function="f"))
    assert touched.table_rows == {"public.comments": 1}
    assert touched.rule_keys == {("get_comments", "public.comments"): 2, ("f", "public.comments"): 2}
    assert routed(FULL._replace(table="other"), Insert(1, (b"1", b"7", b"x"))) == Touched()


def test_every_loss_gives_up_everything() -> None:
    """Guard: a key that is missing cannot be listed, so everything goes; the keys that are known go as well."""
    touched = routed(DEFAULT, Update(1, None, None, (b"1", b"8", b"x")))
    assert (touched.keys, touched.everything) == (keys(8), "identity")
    assert routed(INDEX, Update(1, None, None, (b"1", b"8", b"x"))).everything is None


def test_a_value_that_is_not_of_the_kind_is_a_loss() -> None:
    """Text that cannot be rendered is counted and touches nothing."""
    touched = routed(FULL, Insert(1, (b"1", b"seven", b"x")))
    assert (touched.keys, touched.losses) == ({}, {Loss("value", "public.comments", "get_comments"): 1})


def test_a_missing_column_is_a_loss_of_its_rule_only() -> None:
    """A rule whose column is gone is counted, the others go on."""
    broken = rule(function="broken", fields={"media_id": "gone"})
    touched = routed(FULL, Insert(1, (b"1", b"7", b"x")), broken, rule())
    assert (touched.keys, touched.losses) == (keys(7), {Loss("column", "public.comments", "broken"): 1})


def test_a_later_description_replaces_the_earlier() -> None:
    """After ALTER TABLE tuples are read by the new description."""
    router = Router(RuleSet(namespace="shop", rules=(rule(),)))
    touched = Touched()
    router.describe(DEFAULT)
    router.describe(relation("d", "id", "media_id id"))
    router.route(Insert(1, (b"7", b"1")), touched)
    assert touched.keys == keys(7)


def test_tables_are_told_apart_by_schema() -> None:
    """A table of the same name in another schema has no rules."""
    assert not routed(FULL._replace(schema="archive"), Insert(1, (b"1", b"7", b"x"))).keys


@pytest.mark.parametrize("change", [Insert(2, (b"1",)), Insert(1, (b"1",)), Truncate((2,), 0)])
def test_what_the_description_does_not_fit(change: Change) -> None:
    """A change of an unknown relation and a tuple that is too short are SourceErrors."""
    with pytest.raises(SourceError):
        routed(FULL, change)


def test_an_unknown_kind_is_refused() -> None:
    """A rule whose kind this version does not render is refused at the start."""
    with pytest.raises(DefinitionError, match="float"):
        Router(RuleSet(namespace=None, rules=(rule(kinds={"media_id": "float"}),)))


@pytest.mark.parametrize("fields", [{}, {"media_id": "media_id", "more": "id"}, {"other": "media_id"}])
def test_columns_that_are_not_those_of_the_template(fields: dict[str, str]) -> None:
    """A rule whose columns do not fit its template is refused at the start."""
    with pytest.raises(DefinitionError, match="get_comments"):
        Router(RuleSet(namespace=None, rules=(rule(fields=fields),)))
