"""A forked child that does one thing."""

import os
import warnings
from collections.abc import Callable


def in_a_child(told: Callable[[], str]) -> str:
    """Fork, and return what `told` returns in the child; nothing when it raised there."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests, which this child does not need
        child = os.fork()
    if not child:
        try:
            os.write(writing, told().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text
