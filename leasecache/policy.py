"""How one function is cached: the keyword arguments of `cached` are the fields of `Policy`."""

import math
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from leasecache.errors import DefinitionError

LEASE_MOST = 30 * 86400  # s; more is a date to memcached, for which every hit would have to know its clock
OnWaitTimeout = Literal["load", "stale", "raise"]
CodecName = Literal["json", "pickle"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Times are in seconds and count from the moment they describe; every field may be left out but `ttl`."""

    ttl: float  # s a stored value lives; at least 1; memcached counts in whole seconds
    stale_for: float = 0  # s a value may be served after its invalidation, 0 = never
    lease_for: float = 10  # s a winner has to load and store
    refresh_ahead: float = 0  # s before expiry at which one caller refreshes in the background, 0 = never
    wait_for: float = 2  # s a loser waits for the winner
    on_wait_timeout: OnWaitTimeout = "load"  # what a loser does then
    negative_ttl: float | None = None  # s for None, default ttl
    jitter: float = 0.1  # fraction of ttl taken off at random, so that a batch does not expire at once
    codec: CodecName | None = None  # default by the return annotation
    compress_over: int | None = None  # bytes of an encoded value above which zlib is tried
    version: int = 0  # raise it when the meaning of a value changes but its type does not

    def __post_init__(self) -> None:
        """Refuse values that could not be honoured. Raises DefinitionError naming the field and the range."""
        self._require("ttl", at_least(self.ttl, 1), "at least 1 s")
        in_range = at_least(self.lease_for, 1) and self.lease_for <= LEASE_MOST
        self._require("lease_for", in_range, f"from 1 s to {LEASE_MOST} s")
        for name in ("stale_for", "refresh_ahead", "wait_for"):
            self._require(name, at_least(getattr(self, name), 0), "0 or more s")
        in_range = self.refresh_ahead < self.ttl and self.refresh_ahead <= LEASE_MOST
        self._require("refresh_ahead", in_range, f"less than ttl and at most {LEASE_MOST} s")
        self._require("on_wait_timeout", self.on_wait_timeout in get_args(OnWaitTimeout), "'load', 'stale' or 'raise'")
        self._require("negative_ttl", self.negative_ttl is None or at_least(self.negative_ttl, 1), "at least 1 s")
        self._require("jitter", at_least(self.jitter, 0) and self.jitter < 1, "from 0 to below 1")
        is_size = type(self.compress_over) is int and self.compress_over >= 0
        self._require("compress_over", self.compress_over is None or is_size, "0 or more bytes")
        self._require("version", type(self.version) is int, "an int")

    def ttl_of(self, is_none: bool) -> float:
        """Return the s that a value, or a cached None, lives."""
        return self.negative_ttl if is_none and self.negative_ttl is not None else self.ttl

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise DefinitionError(f"{name}={getattr(self, name)!r} must be {expected}")


class PolicyFields(TypedDict, total=False):
    """The fields of `Policy`, as type checkers see the keyword arguments of `cached`."""

    ttl: float
    stale_for: float
    lease_for: float
    refresh_ahead: float
    wait_for: float
    on_wait_timeout: OnWaitTimeout
    negative_ttl: float | None
    jitter: float
    codec: CodecName | None
    compress_over: int | None
    version: int


def at_least(value: object, least: float) -> bool:
    """Tell whether `value` is a finite number, and not less than `least`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least
