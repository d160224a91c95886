"""Django: whether the caller is in a transaction, which is what `Cache(in_transaction=…)` asks before each call."""

from django.db import connections


def in_transaction() -> bool:
    """Tell whether a database connection of this thread or task is in `atomic()`, or has autocommit off.

    Looks at the connections of all databases that there are, and opens none.
    """
    found = connections.all(initialized_only=True)
    return any(one.connection is not None and (one.in_atomic_block or not one.autocommit) for one in found)
