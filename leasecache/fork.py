"""What a forked child must forget: locks that another thread held, sockets and threads of the parent."""

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    """State that belongs to one process."""

    def forget(self) -> None:
        """Start anew, as if nothing had happened yet."""


_registered: "weakref.WeakSet[Forgetful]" = weakref.WeakSet()


def forget_after_fork(state: Forgetful) -> None:
    """Have `state.forget()` called in every forked child while `state` lives."""
    _registered.add(state)


def _after_fork_in_child() -> None:
    for state in list(_registered):
        state.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
