"""Sizes, times, counts and rates as people read them."""

from datetime import datetime, timezone

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """Return bytes as "1.5 MiB"."""
    step = 0
    while count >= 1024 and step < len(_UNITS) - 1:
        count /= 1024
        step += 1
    return f"{count:.0f} {_UNITS[step]}" if step == 0 or count >= 100 else f"{count:.1f} {_UNITS[step]}"


def duration(seconds: float) -> str:
    """Return seconds as "4 ms", "12.3 s", "2 h 5 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    hours, days = minutes // 60, minutes // 1440
    return f"{hours} h {minutes % 60} min" if days < 2 else f"{days} d {hours % 24} h"


def number(count: float) -> str:
    """Return a count as "1 234 567"."""
    return f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def rate(per_second: float) -> str:
    """Return a rate, with a decimal where it matters."""
    return f"{per_second:.1f}" if 0 < per_second < 10 else number(per_second)


def clock(at: float) -> str:
    """Return Unix seconds as "14:03:22"."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S")


def instant(at: float) -> str:
    """Return Unix seconds as "2026-01-02 14:03:22"."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
