"""Compiled twin of `leasecache._pure_keys`: the rendering of keys, and which node owns one."""

from collections.abc import Iterable, Sequence
from typing import Any

def percent_encode(text: bytes) -> bytes:
    """Percent-encode every byte outside A-Za-z0-9._~- with upper-case hex digits."""

def shorten(key: bytes) -> bytes:
    """Return `key`, or its first 187 bytes, `~` and the BLAKE2b-128 of the whole when it exceeds 220 bytes."""

def delete_requests(keys: Iterable[bytes], most: int) -> list[bytes]:
    """Return requests that delete these keys quietly, each of at most `most` bytes or for one key."""

class Renderer:
    """Renders the keys of one template, from Python arguments or from Postgres text, to the same bytes."""

    def __init__(
        self,
        function: str,
        literals: tuple[bytes, ...],
        names: tuple[str, ...],
        kinds: tuple[int, ...],
        nullable: tuple[bool, ...],
        enums: tuple[type | None, ...],
    ) -> None: ...
    def from_python(self, values: tuple[Any, ...]) -> bytes:
        """Render the key of typed Python arguments. Raises TypeError naming function and field."""

    def from_many(self, arguments: list[Any]) -> list[bytes]:
        """Render a key of each; one that is no tuple is the only field. Raises like `from_python`."""

    def from_text(self, columns: Sequence[bytes | None]) -> bytes:
        """Render the key of Postgres text output, None for NULL. Raises ValueError on text not of the kind."""

class Ring:
    """Says which node owns a key: weighted rendezvous hashing, in whole numbers but for one division."""

    def __init__(self, seeds: Sequence[int], weights: Sequence[float]) -> None: ...
    def __len__(self) -> int: ...
    def owner(self, key: bytes) -> int:
        """Return the position of the node that owns `key`."""
