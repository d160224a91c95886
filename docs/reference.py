"""The keys of the daemon's configuration as a table, from the classes that read them."""

import dataclasses
from typing import Any

from leasecache.invalidation.settings import Settings


def table() -> str:
    """Return every key with its type, default and variable, as Markdown."""
    rows = ["| key | is | default | variable |", "|---|---|---|---|"]
    for section in dataclasses.fields(Settings):
        rows += [_row(section.name, field) for field in dataclasses.fields(section.type)]  # type: ignore[arg-type]
    return "\n".join([*rows, ""])


def _row(section: str, field: "dataclasses.Field[Any]") -> str:
    key = field.metadata.get("name") or field.name
    kinds: dict[Any, str] = {float: "number", int: "integer", tuple[str, ...]: "list of texts"}
    kind = kinds.get(field.type, "text")
    about = f"{field.metadata['about']} ({kind})"
    return f"| `{section}.{key}` | {about} | {_default(field.default)} | `LEASECACHE_{section.upper()}_{key.upper()}` |"


def _default(value: object) -> str:
    if value is dataclasses.MISSING:
        return "none, must be given"
    if value in (None, ()):
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
