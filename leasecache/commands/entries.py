"""`leasecache get`, `peek`, `invalidate`: look at one entry of a cache without touching its lease, or drop it."""

import json
import re
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasecache.commands import AsJson, give_up
from leasecache.commands.nodes import CacheUrl, open_networked, read_record

if TYPE_CHECKING:
    from leasecache.lease import Hit

Key = Annotated[str, typer.Argument(metavar="KEY", help="The logical key as `.key()` returns it, namespace included.")]

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them


def get(key: Key, cache: CacheUrl, as_json: AsJson = False) -> None:
    """Print the value of an entry, as text or JSON. Exit code 1 = there is none, or it cannot be read."""
    from leasecache.codecs import DecodeError, decode_untyped

    _, hit = _look(key, cache)
    outline = _outline(key, hit)
    try:
        value = decode_untyped(hit.flags, hit.value)
    except DecodeError as error:
        if as_json:
            _print_json({**outline, "value": None, "fault": str(error)})
        give_up(f"the value of {key} ({outline['codec']}, {outline['size']} bytes) is not shown: {error}")
    if as_json:
        _print_json({**outline, "value": value})
    else:
        _print_value(value)


def peek(key: Key, cache: CacheUrl, as_json: AsJson = False) -> None:
    """Print what is known of an entry, without its value. Exit code 1 = there is none."""
    from leasecache.codecs import describe

    node, hit = _look(key, cache)
    _, compressed, is_none = describe(hit.flags)
    known = {**_outline(key, hit), "compressed": compressed, "none": is_none, "node": node}
    if as_json:
        _print_json(known)
        return
    for name, told in known.items():
        typer.echo(f"{name.replace('_', ' '):<12}{_phrase(name, told)}")


def invalidate(
    key: Key,
    cache: CacheUrl,
    stale_for: Annotated[
        int, typer.Option(min=0, metavar="S", help="Seconds that the value may still be served as stale.")
    ] = 0,
) -> None:
    """Void outstanding leases on an entry and drop its value, or leave it stale; there need not be one."""
    with closing(open_networked(cache)) as store:
        name = _checked(key, store.namespace)
        store.invalidate([name], stale_for)
        typer.echo(f"invalidated {key} on {store.node_for(name).name}")


def _look(key: str, url: str) -> "tuple[str, Hit]":
    """Return the name of the node of an entry and what is stored there; when nothing is, exit."""
    from leasecache.guard import wire_key

    with closing(open_networked(url)) as store:
        name = _checked(key, store.namespace)
        node = store.node_for(name)
        record = read_record(store, node)[0]
        hit = node.look(wire_key(record.generation, name)) if record else None  # a guarded function's
        hit = hit or node.look(name)
    if hit is None:
        give_up(f"no value of {key} on {node.name}")
    return node.name, hit


def _checked(key: str, namespace: str | None) -> bytes:
    """Return the bytes of a key. Raises ConfigError when no function of this cache could have it."""
    from leasecache._pure_keys import KEY_LIMIT
    from leasecache.errors import ConfigError
    from leasecache.keys import key_prefix

    prefix = key_prefix(namespace).decode()
    if not 0 < len(key) <= KEY_LIMIT or not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"{key!r} is no key: write 1 to {KEY_LIMIT} visible ASCII characters, as `.key()` returns them"
        )
    if not key.startswith(prefix):
        raise ConfigError(f"{key!r} does not begin with the namespace of the cache URL; write {prefix + key!r}")
    return key.encode()


def _outline(key: str, hit: "Hit") -> dict[str, Any]:
    from leasecache.codecs import describe

    return {"key": key, "codec": describe(hit.flags).codec, "size": len(hit.value), "expires_in": hit.expires_in}


def _phrase(name: str, known: Any) -> str:
    if isinstance(known, bool):
        return "yes" if known else "no"
    if name == "size":
        return f"{known} bytes"
    if name == "expires_in":
        return "never" if known is None else f"{known:.0f} s"
    return str(known)


def _print_value(value: Any) -> None:
    on_terminal = sys.stdout.isatty()
    if isinstance(value, bytes):
        typer.echo(repr(value) if on_terminal else value, nl=on_terminal)
    elif isinstance(value, str):
        shown = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], value) if on_terminal else value
        typer.echo(shown.encode())
    else:
        _print_json(value)


def _print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, default=_base64)
    text = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    typer.echo(text.encode("utf-8", "backslashreplace"))  # half a surrogate pair, which JSON can escape


def _base64(value: bytes) -> str:
    import base64

    return base64.b64encode(value).decode()
