"""Log sequence numbers: a position in the write-ahead log as an integer, and as Postgres prints it."""

import re

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


def parse_lsn(text: str) -> int:
    """Return the position that Postgres prints as `text`, such as `16/B374D848`. Raises ValueError on anything else."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"not a log sequence number: {text!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(position: int) -> str:
    """Return `position` (bytes) as Postgres prints it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
