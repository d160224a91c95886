"""The flood: what it measures of a running daemon, and how it judges that."""

import io

import pytest
from rich.console import Console

from loadtests import flood


def test_a_short_flood_is_acknowledged() -> None:
    """A daemon behind a writer that never waits, and a node that answers late for a while, catches up in the end."""
    seen = flood.run(6, 1)
    assert seen.drained
    assert seen.rows > flood.AT_ONCE
    assert max(seen.memory) > 1
    printed = io.StringIO()
    Console(file=printed, width=200).print(flood.table(seen))
    assert "all acknowledged" in printed.getvalue()


@pytest.mark.parametrize(
    ("memory", "flat"),
    [
        ([50.0] * 9, True),
        ([50, 60, 60, 500, 500, 500, 60, 70, 70], True),
        ([50, 50, 50, 60, 60, 60, 70, 70, 70], False),
    ],
    ids=["level", "back again", "growing"],
)
def test_flatness(memory: list[float], flat: bool) -> None:
    """The last third is held against the first one, by the most of each."""
    assert flood.Seen(memory=memory).flat() is flat
