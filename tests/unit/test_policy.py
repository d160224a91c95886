"""Policies: the defaults of the contract, and what cannot be honoured is refused with its range."""

import dataclasses
import math
import typing
from typing import Any

import pytest

from leasecache import DefinitionError, Policy
from leasecache.policy import PolicyFields


def test_defaults() -> None:
    """Only the ttl must be given; the rest has the documented defaults."""
    policy = Policy(ttl=60)
    assert dataclasses.asdict(policy) == {
        "ttl": 60,
        "stale_for": 0,
        "lease_for": 10,
        "refresh_ahead": 0,
        "wait_for": 2,
        "on_wait_timeout": "load",
        "negative_ttl": None,
        "jitter": 0.1,
        "codec": None,
        "compress_over": None,
        "version": 0,
    }


def test_type_checkers_see_the_same_fields() -> None:
    """The keyword arguments of `cached` have the names and the types of the policy's fields."""
    assert list(PolicyFields.__annotations__) == list(Policy.__dataclass_fields__)
    assert typing.get_type_hints(PolicyFields) == typing.get_type_hints(Policy)


def test_frozen_and_by_keyword() -> None:
    """A policy is a value: it cannot change, and its numbers cannot be mixed up by position."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy(ttl=60).ttl = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Policy(60)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("ttl", 0, "at least 1 s"),
        ("ttl", 0.5, "at least 1 s"),
        ("ttl", math.inf, "at least 1 s"),
        ("ttl", math.nan, "at least 1 s"),
        ("ttl", "60", "at least 1 s"),
        ("ttl", None, "at least 1 s"),
        ("ttl", True, "at least 1 s"),
        ("lease_for", 0, "from 1 s to 2592000 s"),
        ("lease_for", 31 * 86400, "from 1 s to 2592000 s"),
        ("stale_for", -1, "0 or more s"),
        ("stale_for", math.nan, "0 or more s"),
        ("wait_for", -0.1, "0 or more s"),
        ("refresh_ahead", -1, "0 or more s"),
        ("refresh_ahead", 60, "less than ttl and at most 2592000 s"),
        ("refresh_ahead", 61, "less than ttl and at most 2592000 s"),
        ("on_wait_timeout", "retry", "'load', 'stale' or 'raise'"),
        ("negative_ttl", 0, "at least 1 s"),
        ("jitter", 1, "from 0 to below 1"),
        ("jitter", -0.1, "from 0 to below 1"),
        ("jitter", "0.1", "from 0 to below 1"),
        ("compress_over", -1, "0 or more bytes"),
        ("compress_over", "1k", "0 or more bytes"),
        ("version", "1", "an int"),
        ("version", 1.5, "an int"),
    ],
)
def test_refused(field: str, value: Any, expected: str) -> None:
    """A value out of range names the field, the value and the range."""
    with pytest.raises(DefinitionError) as caught:
        Policy(**{"ttl": 60, field: value})
    assert str(caught.value) == f"{field}={value!r} must be {expected}"


@pytest.mark.parametrize(
    "fields",
    [{"ttl": 1}, {"ttl": 1.5, "refresh_ahead": 1.4}, {"ttl": 60, "wait_for": 0}, {"ttl": 60, "jitter": 0.99}],
)
def test_boundaries_accepted(fields: dict[str, Any]) -> None:
    """The ends of the ranges belong to them."""
    assert Policy(**fields).ttl == fields["ttl"]


def test_refreshing_ahead_of_a_long_ttl() -> None:
    """More than 30 days ahead is a date to memcached, on every hit, so it is refused; guard: the second half."""
    assert Policy(ttl=60 * 86400, refresh_ahead=30 * 86400).refresh_ahead == 30 * 86400
    with pytest.raises(DefinitionError, match="refresh_ahead=2592001 must be less than ttl and at most 2592000 s"):
        Policy(ttl=60 * 86400, refresh_ahead=30 * 86400 + 1)


@pytest.mark.parametrize(("negative_ttl", "expected"), [(None, 60), (5, 5), (600, 600)])
def test_ttl_of_none(negative_ttl: float | None, expected: float) -> None:
    """A cached None lives for `negative_ttl`, or like every other value without one."""
    policy = Policy(ttl=60, negative_ttl=negative_ttl)
    assert policy.ttl_of(is_none=True) == expected
    assert policy.ttl_of(is_none=False) == 60
