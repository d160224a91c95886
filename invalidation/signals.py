"""What SIGTERM and SIGINT do to the daemon: end it with 0, whenever they come."""

import os
import signal
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_at_once() -> None:
    """Let the signals end the process with 0 from here on: nothing is in flight, so there is nothing to finish.

    Not as an exception, which the import of an application may catch, or which may arrive within a library.
    """
    _hear(lambda: os._exit(0))


def end_by(stop: Callable[[], None]) -> None:
    """Let the signals call `stop` from here on."""
    _hear(stop)


def _hear(call: Callable[[], None]) -> None:
    for number in SIGNALS:
        signal.signal(number, lambda *_: call())
