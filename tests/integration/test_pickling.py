"""Decorated functions in other processes: sent by name, bound or not, under every way of starting a process."""

import functools
import multiprocessing
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from tests.integration.pickled_app import Shop, cache, double, halves

SENT: list[tuple[Callable[..., Any], Any, Any]] = [
    (double, 3, 6),
    (halves, [3, 4], {4: 2}),
    (functools.partial(double, x=4), None, 8),
    (Shop(5).price, 3, 15),
    (functools.partial(Shop(5).price), 2, 10),
    (Shop.of_class, 3, 4),
    (Shop(5).of_class, 3, 4),
    (Shop.static, 3, 2),
    (Shop(5).static, 3, 2),
    (double.lookup, 3, None),
    (double.get_many, [1, 2], {1: 2, 2: 4}),
    (Shop(5).price.key, 3, b"price:3"),
]


def apply(fn: Callable[..., Any], argument: Any) -> Any:
    """Call a function that has come from elsewhere."""
    return fn() if argument is None else fn(argument)


def _named(value: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # the same in every process that collects tests


@pytest.mark.parametrize(("fn", "argument", "value"), SENT, ids=_named)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickled(fn: Callable[..., Any], argument: Any, value: Any, protocol: int) -> None:
    """What is bound to an instance takes it along; the function itself goes by name, and comes back with its cache."""
    with cache.override("memory://"):
        found = apply(pickle.loads(pickle.dumps(fn, protocol)), argument)
        assert value is None or found == value


def test_identity() -> None:
    """A function that was pickled is the same object when it comes back."""
    assert pickle.loads(pickle.dumps(double)) is double
    assert pickle.loads(pickle.dumps(Shop.price)).original is Shop.price.original


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 and later
def test_sent_to_processes(method: str) -> None:
    """Workers get functions however they were started, and use caches of their own process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        futures = [pool.submit(apply, fn, argument) for fn, argument, _ in SENT]
        found = [future.result(60) for future in futures]
    expected = [value if value is not None else found[i] for i, (_, _, value) in enumerate(SENT)]
    assert found == expected
