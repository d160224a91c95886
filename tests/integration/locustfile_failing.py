"""A user whose loader fails for odd numbers, and has a fault for number 4."""

import itertools

from locust import constant, task

from leasecache import Cache
from loadtests.base import CacheUser

ENOUGH = 20  # calls


class Caller(CacheUser):
    """Calls with 0, 1, 2, 3, 4 and so on; ends the run after some."""

    wait_time = constant(0.01)
    failures = (*CacheUser.failures, LookupError)
    numbers = itertools.count()

    @classmethod
    def declare(cls, cache: Cache) -> None:
        @cache.cached("half:{number}", ttl=60)
        def get_half(number: int) -> int:
            if number % 2:
                raise LookupError("odd")
            if number == 4:
                raise ZeroDivisionError("a fault of the test")
            return number // 2

        cls.get_half = staticmethod(get_half)

    @task
    def take_half(self) -> None:
        number = next(self.numbers)
        if number == ENOUGH:
            self.environment.runner.quit()
        self.call(self.get_half, number)
