"""The Django integration, in a process whose settings are the test's own."""

import subprocess
import sys

PROGRAM = """
import django
from django.conf import settings

SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": SQLITE, "other": SQLITE})
django.setup()

from django.db import connections, transaction

from leasecache import Cache
from leasecache.contrib.django import in_transaction

cache = Cache.from_url("memory://", in_transaction=in_transaction)


@cache.cached("item:{n}", ttl=60)
def item(n: int) -> int:
    return n


def state() -> str:
    return item.lookup(1).state


assert not in_transaction()
assert [one.connection for one in connections.all()] == [None, None], "it opens none"
assert [state(), state()] == ["loaded", "fresh"]
for alias in ("default", "other"):
    with transaction.atomic(using=alias):
        assert state() == "uncached", alias
        with transaction.atomic(using=alias):
            assert state() == "uncached", alias
        assert state() == "uncached", alias
    assert state() == "fresh", alias
transaction.set_autocommit(False, using="other")
assert state() == "uncached"
transaction.set_autocommit(True, using="other")
assert state() == "fresh"
connections.close_all()
assert state() == "fresh"
"""


def test_calls_in_a_transaction_of_any_database_bypass_the_cache() -> None:
    """Within `atomic()` and with autocommit off nothing is served or stored; otherwise everything is."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
