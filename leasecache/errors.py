"""The errors of leasecache: the type says who is at fault.

    LeasecacheError
    ├── ConfigError (ValueError)        you: a URL, a file, a setting, a declaration
    │   └── DefinitionError (TypeError) you: a decorated function, a key template, a rule
    ├── LeaseTimeout (TimeoutError)     nobody: a value was not there in the time you allowed
    ├── NodeError (ConnectionError)     a cache node or the network
    │   ├── NodeTimeout (TimeoutError)  it did not answer in time
    │   ├── ProtocolError               it answered what its protocol does not allow
    │   └── GuardError                  it may be out of date: the daemon does not vouch for it
    └── SourceError                     Postgres, as the source of invalidations
        └── GapError                    changes may be missing from the stream

A miss, a lost lease and a refused fill are values (`leasecache.lease`), never errors.
"""


class LeasecacheError(Exception):
    """Base of every error raised by leasecache."""


class ConfigError(LeasecacheError, ValueError):
    """A URL, file, setting or declaration is wrong; the message names the fault and the fix."""


class DefinitionError(ConfigError, TypeError):
    """A function, key template or rule cannot be cached as declared; raised when the decorator runs."""


class LeaseTimeout(LeasecacheError, TimeoutError):
    """No value arrived within `wait_for` and the policy forbids loading or serving stale."""


class NodeError(LeasecacheError, ConnectionError):
    """A cache node is unreachable, or the connection to it broke."""


class NodeTimeout(NodeError, TimeoutError):
    """A cache node did not answer within the time limit of the operation."""


class ProtocolError(NodeError):
    """A cache node sent bytes that its protocol does not allow; the connection is closed."""


class GuardError(NodeError):
    """The invalidation daemon does not vouch for what a cache node holds; nothing is wrong with the node itself.

    `missing` tells what its guard record lacks: "record" (there is none), "ring" or "rule".
    """

    def __init__(self, message: str, missing: str = "record") -> None:
        super().__init__(message)
        self.missing = missing


class SourceError(LeasecacheError):
    """Postgres refused, ended or garbled the replication stream."""


class GapError(SourceError):
    """The slot or publication no longer covers every change since the last acknowledged position."""
