"""`CacheUser`: a locust user whose requests are calls of cached functions."""

import time
from collections.abc import Callable
from typing import Any, ClassVar, ParamSpec, TypeVar

from locust import User  # patches the standard library, so it comes before psycopg, which looks when it is imported
from locust.env import Environment
from locust.exception import RescheduleTask

from leasecache import Cache, ConfigError, LeasecacheError

P = ParamSpec("P")
R = TypeVar("R")


class CacheUser(User):
    """The base of users that call cached functions; `host` (`--host`, `LOCUST_HOST`) is the URL of the cache.

    A subclass declares its functions in `declare` and has tasks that call them by `call`. The users of one class and
    process share a cache while a test runs, as the threads of an application do.
    """

    abstract = True
    failures: ClassVar[tuple[type[Exception], ...]] = (LeasecacheError,)  # add what the loaders raise
    kind: ClassVar[str] = "CACHE"  # the type of the requests in locust's statistics
    _cache: ClassVar[Cache | None] = None

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        if self._cache is None:
            self._open(environment)

    @classmethod
    def declare(cls, cache: Cache) -> None:
        """Declare the functions that the tasks call, as attributes of the class."""
        raise NotImplementedError

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a cached function as one request in locust's statistics, under the function's name.

        One of `failures` is a failed request and ends the task. Any other exception is a fault of the test itself,
        which locust reports apart from the requests.
        """
        began = time.perf_counter()
        try:
            result = function(*args, **kwargs)
        except self.failures as error:
            record(self.environment, self.kind, function.__name__, began, error)
            raise RescheduleTask from error
        record(self.environment, self.kind, function.__name__, began)
        return result

    @classmethod
    def _open(cls, environment: Environment) -> None:
        if not cls.host:
            raise ConfigError("no cache to test; give its URL, such as --host memcached://127.0.0.1:11211")
        cls._cache = Cache.from_url(cls.host)
        cls.declare(cls._cache)
        environment.events.test_stop.add_listener(cls._close)

    @classmethod
    def _close(cls, environment: Environment, **_: Any) -> None:
        if cls._cache is not None:
            cls._cache.close()
            cls._cache = None
        environment.events.test_stop.remove_listener(cls._close)


def record(environment: Environment, kind: str, name: str, began: float, error: Exception | None = None) -> None:
    """Tell locust's statistics about a request that began at `began` on the performance counter."""
    environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=(time.perf_counter() - began) * 1000,
        response_length=0,
        exception=error,
        context={},
    )
