"""Log lines: one per state change, as logfmt or JSON on standard error."""

import json
import logging
import time

from leasecache.errors import ConfigError

FORMATS = ("logfmt", "json")
LEVELS = ("debug", "info", "warning", "error")
_LOG = logging.getLogger("leasecache.daemon")


def event(level: int, name: str, **fields: object) -> None:
    """Log that `name` happened, with what is known about it."""
    _LOG.log(level, name, extra={"fields": fields})


def configure(form: str, level: str) -> None:
    """Send the daemon's log to standard error in `form`, one of FORMATS, from `level`, one of LEVELS, on.

    Raises ConfigError on any other.
    """
    if form not in FORMATS or level not in LEVELS:
        raise ConfigError(
            f"log format {form!r} or level {level!r}: use {' or '.join(FORMATS)}, and {', '.join(LEVELS)}"
        )
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Logfmt())
    _LOG.handlers[:] = [handler]
    _LOG.propagate = False
    _LOG.setLevel(level.upper())


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_quoted(value)}" for name, value in _fields(record).items())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record), default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
    fields: dict[str, object] = getattr(record, "fields", {})
    return {"ts": at, "level": record.levelname.lower(), "event": record.getMessage(), **fields}


def _quoted(value: object) -> str:
    """Return a value that is one word, or quoted as in JSON; nothing in it breaks a line or reaches a terminal raw."""
    text = str(value)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(text, ensure_ascii=False))
