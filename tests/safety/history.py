"""Who did what to a row, and when: kept short by every process, put together when a run has failed."""

import json
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

KEPT = {"read": 60}  # events of a kind that a process keeps per row
KEPT_OTHERS = 400
EVERY_ROW = -1  # the row of an event that concerns all
SHOWN = 80  # events of a row that are printed


class Event(NamedTuple):
    """One thing that happened to a row; times in ns of the monotonic clock."""

    ended: int
    began: int
    who: str
    row: int
    what: str
    detail: str


class History:
    """The latest events of one process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._events: defaultdict[tuple[int, str], deque[Event]] = defaultdict(lambda: deque(maxlen=KEPT_OTHERS))

    def note(self, row: int, what: str, began: int, detail: str) -> None:
        """Keep an event that began at `began` ns and has just ended."""
        events = self._events.get((row, what))
        if events is None:
            events = self._events.setdefault((row, what), deque(maxlen=KEPT.get(what, KEPT_OTHERS)))
        who = f"{self._name}/{os.getpid()}/{threading.current_thread().name}"
        events.append(Event(time.monotonic_ns(), began, who, row, what, detail))

    def events(self) -> list[Event]:
        """Return what was kept."""
        return [event for events in list(self._events.values()) for event in list(events)]


def write(path: Path, content: object) -> None:
    """Leave a report for the process that collects them; it appears whole or not at all."""
    hidden = path.with_suffix(".part")
    hidden.write_text(json.dumps(content))
    hidden.rename(path.with_suffix(".json"))


def timeline(events: Iterable[Event], row: int, until: int) -> list[str]:
    """Return the lines of a row's history up to `until` ns, the latest ones, by the time each ended."""
    ours = sorted(event for event in events if event.row in (row, EVERY_ROW) and event.began <= until)[-SHOWN:]
    origin = ours[0].began if ours else 0
    return [
        f"{(event.began - origin) / 1e6:10.3f} … {(event.ended - origin) / 1e6:10.3f} ms  "
        f"{event.who:32} {event.what:10} {event.detail}"
        for event in ours
    ]
