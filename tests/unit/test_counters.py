"""What a counter refuses, quotes and hands to a cache, without a database."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from leasecache.counters import Counter, counter
from leasecache.errors import ConfigError
from leasecache.rules import row


class RecordingCache:
    """A cache that keeps what `cached` was given and returns the function as it is."""

    template: str
    options: dict[str, Any]

    def cached(self, template: str, **options: Any) -> Callable[[Any], Any]:
        """Keep the declaration."""
        self.template, self.options = template, options
        return lambda function: function


class FakeConnections:
    """A `connect` that counts how often it was opened."""

    opened = 0

    def __call__(self) -> "FakeConnections":
        return self

    def __enter__(self) -> Any:
        self.opened += 1
        return object()

    def __exit__(self, *exc_info: object) -> None: ...


def likes(**changes: Any) -> Counter:
    """Declare a counter of likes, with changes."""
    return counter(**{"table": "media_likes", "of": "user_likes_media", "by": "media_id", **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mode": "slots"}, "use mode='row'"),
        ({"mode": "delta"}, "use mode='row'"),
        ({"by": "count"}, "'count'"),
        ({"by": "version"}, "'version'"),
        ({"by": ""}, "1 to 63 bytes"),
        ({"where": "  "}, "leave it out"),
        ({"table": "l" * 52}, "1 to 63 bytes"),
        ({"table": "é" * 26}, "1 to 63 bytes"),
        ({"of": "nul\0"}, "1 to 63 bytes"),
    ],
)
def test_a_wrong_declaration_is_refused(changes: dict[str, Any], named: str) -> None:
    """A declaration that cannot be kept is a ConfigError that names the fault."""
    with pytest.raises(ConfigError, match=named):
        likes(**changes)


def test_a_name_without_schema_means_public() -> None:
    """Unqualified names do not depend on anybody's search_path."""
    assert '"public"."media_likes"' in likes().sql()
    assert '"stats"."media_likes"' in likes(table="stats.media_likes").sql()


def test_names_are_quoted() -> None:
    """A quote in a name stays within the name."""
    assert '"public"."say ""likes"""' in likes(table='say "likes"').sql()


def test_the_quoting_of_a_block_yields_to_what_the_predicate_holds() -> None:
    """A predicate with the dollar tag in it does not end the block."""
    text = likes(where="note <> '$counter$'").sql()
    assert "AS $counter_$" in text
    assert text.startswith("DO $counter__$")


def test_a_bound_counter_depends_on_its_row() -> None:
    """The cached function is declared with the counter's name, key type, row and policy."""
    cache = RecordingCache()
    function = likes().bind(cache, connect=FakeConnections(), key_type=uuid.UUID, ttl=60, stale_for=5)
    assert cache.template == "media_likes:{key}"
    assert cache.options == {"depends_on": row("media_likes", key="media_id"), "ttl": 60, "stale_for": 5}
    assert function.__qualname__ == function.__name__ == "media_likes"
    assert function.__annotations__ == {"key": uuid.UUID, "return": int}


def test_a_template_holds_only_what_a_key_can() -> None:
    """Spaces and braces of a table's name are encoded in the template."""
    cache = RecordingCache()
    likes(table="stats.media {likes}").bind(cache, connect=FakeConnections(), ttl=60)
    assert cache.template == "stats.media%20%7Blikes%7D:{key}"


def test_a_cached_count_opens_and_closes_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each load takes one connection, and `connect` of the binding goes before that of the counter."""
    monkeypatch.setattr(Counter, "count", lambda self, conn, key: key * 10)
    own, other = FakeConnections(), FakeConnections()
    declared = likes(connect=own)
    assert declared.bind(RecordingCache(), ttl=60)(7) == 70
    assert declared.bind(RecordingCache(), connect=other, ttl=60)(8) == 80
    assert (own.opened, other.opened) == (1, 1)


def test_binding_without_connections_is_refused() -> None:
    """A counter that nobody gave connections cannot be cached."""
    with pytest.raises(ConfigError, match=r"connect=pool\.connection"):
        likes().bind(RecordingCache(), ttl=60)
