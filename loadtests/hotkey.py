"""The users of the herd: readers of one hot key, and the one who writes and invalidates it."""

from typing import ClassVar, Protocol

from locust import between, constant_pacing, task

from leasecache import Cache
from loadtests.base import CacheUser
from loadtests.plain import TTL, PlainFunction
from loadtests.row import HOT, HotRow
from loadtests.scenario import Scenario

PAUSE = 0.1  # s at most between two reads of one user; at random, for those who waited for one load march in step
PATIENCE = 10.0  # s beyond the time of a load that a lease lasts, and a waiter waits


class Cached(Protocol):
    """What the users need of a cached function, with leases or without."""

    def __call__(self, row_id: int) -> int: ...

    def invalidate(self, row_id: int) -> None: ...


class HotKeyUser(CacheUser):
    """A user of the hot key, in the scenario of the present run."""

    abstract = True
    failures = (*CacheUser.failures, *HotRow.failures, *PlainFunction.failures)
    scenario: ClassVar[Scenario]
    get_version: ClassVar[Cached]

    @classmethod
    def declare(cls, cache: Cache) -> None:
        scenario, options = cls.scenario, cls.scenario.options
        patience = PATIENCE + options.loader_ms / 1000

        def get_version(row_id: int) -> int:
            return scenario.load(row_id)

        if options.without_leases:
            cls.get_version = PlainFunction(str(cls.host), get_version)
        else:
            cached = cache.cached(
                "hot:{row_id}", ttl=TTL, stale_for=options.stale_for, lease_for=patience, wait_for=patience
            )
            cls.get_version = cached(staticmethod(get_version))  # a plain one would bind to the user as a method


class Reader(HotKeyUser):
    """Reads the hot key nearly twenty times a second."""

    wait_time = between(0, PAUSE)

    @task
    def read(self) -> None:
        due = self.scenario.tally.version
        version = self.call(self.get_version, HOT)
        self.scenario.tally.answered(version, due)


class Writer(HotKeyUser):
    """Updates the row and then invalidates the key, as the one who follows the database does."""

    fixed_count = 1
    kind = "WRITE"

    def wait_time(self) -> float:
        return constant_pacing(self.scenario.options.invalidate_every)(self)

    def on_start(self) -> None:
        self.wait()  # meanwhile the readers come upon the cold key

    @task
    def write(self) -> None:
        version = self.call(self.scenario.row.update, HOT)
        with self.scenario.tally.invalidating(version):
            self.call(self.get_version.invalidate, HOT)
