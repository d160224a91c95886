r"""All Lua of the Redis stores. Each script runs as one step on the server; times are in ms.

KEYS[1] is a value, KEYS[2] its lease. A value is a header of 22 bytes and the body; the header is `F\255` (fresh) or
`S\255` (stale), client flags in 4 bytes, the value's version in 8, its expiry in ms since 1970 in 8. Byte 255 occurs
in no UTF-8 text, so that a text somebody else wrote is not taken for ours. A lease is a token of 8 bytes. The token
that may change a key is the version of its value while that is fresh, else its lease; a lease beside a fresh value
(an early refresh) holds the value's version.

KEYS[3], where it is given, is the guard record: the last argument is the digest of the body that it must have, or the
answer is the body that it has.
"""

import hashlib
from typing import NamedTuple

from leasecache.lease import Decision

OTHER_RECORD = "GUARD"  # what a script answers instead of a decision's name


class Script(NamedTuple):
    """A script: its text, and the digest that the server knows it by."""

    text: bytes
    sha: bytes


def _script(*parts: str) -> Script:
    text = "\n".join(part.strip() for part in parts).encode()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


_HOLDER = r"""
local head = redis.call('GETRANGE', KEYS[1], 0, 21)
local mark = #head == 22 and string.sub(head, 1, 2)
local holder = false
if mark == 'F\255' then
  holder = string.sub(head, 7, 14)
elseif mark == 'S\255' or head == '' then
  holder = redis.call('GET', KEYS[2])
end
"""

_GUARD = rf"""
if KEYS[3] then
  local record = redis.pcall('GET', KEYS[3])
  record = type(record) == 'string' and string.sub(record, 1, 2) == 'F\255' and string.sub(record, 23)
  if not record or redis.sha1hex(record) ~= ARGV[#ARGV] then return {{'{OTHER_RECORD}', record}} end
end
"""

# The answers of DECISIONS in `lease.py`: [decision, ms left, value, holder of the lease].
_LEASE_GET = rf"""
local value = redis.call('GET', KEYS[1])
local mark = value and #value >= 22 and string.sub(value, 1, 2)
if value and mark ~= 'F\255' and mark ~= 'S\255' then
  return {{'{Decision.UNSTORABLE.name}'}}
end
local left = value and redis.call('PTTL', KEYS[1])
if mark == 'F\255' then
  if left >= 0 and left < tonumber(ARGV[3]) then
    local won = redis.pcall('SET', KEYS[2], string.sub(value, 7, 14), 'NX', 'PX', ARGV[2])
    if won and won.ok then return {{'{Decision.REFRESH.name}', left, value}} end
  end
  return {{'{Decision.HIT.name}', left, value}}
end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return {{value and '{Decision.WON_STALE.name}' or '{Decision.WON.name}', left, value}}
end
return {{value and '{Decision.STALE.name}' or '{Decision.WAIT.name}', left, value, redis.call('GET', KEYS[2])}}
"""

_VOID = r"""
if holder == ARGV[4] then
  redis.call('DEL', KEYS[2])
  if mark == 'F\255' then redis.call('SETRANGE', KEYS[1], 0, 'S') end
end
"""

# SET comes first: once a script has written, Redis lets it write on however full the memory is.
_LEASE_SET = r"""
if not holder then return 0 end
if holder ~= ARGV[1] then return 1 end
local now = redis.call('TIME')
local expiry = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[4]
local stored = redis.pcall('SET', KEYS[1], ARGV[2] .. struct.pack('>I8', expiry) .. ARGV[3], 'PX', ARGV[4])
redis.call('DEL', KEYS[2])
return stored.err and stored or 2
"""

_RELEASE = r"""
if holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[2] == 'drop' then redis.call('DEL', KEYS[1]) end
return 1
"""

# Out of memory SETRANGE is refused but DEL is not: then the value goes.
_MARK_STALE = r"""
local window = tonumber(ARGV[1])
for _, key in ipairs(KEYS) do
  local mark, left = redis.pcall('GETRANGE', key, 0, 1), redis.call('PTTL', key)
  local kept = (mark == 'F\255' or mark == 'S\255') and (left < 0 or left >= 1000)
  if kept and type(redis.pcall('SETRANGE', key, 0, 'S')) == 'number' then
    if left < 0 or left > window then redis.call('PEXPIRE', key, ARGV[1]) end
  else
    redis.call('DEL', key)
  end
end
return #KEYS
"""

# ARGV: token if won, lease ms, ms before the expiry at which a refresh may be won
LEASE_GET = _script(_GUARD, _LEASE_GET)
STEAL = _script(_GUARD, _HOLDER, _VOID, _LEASE_GET)  # ARGV: as LEASE_GET, then the token to void
LEASE_SET = _script(_HOLDER, _LEASE_SET)  # ARGV: token, header without expiry, body, ttl ms; 0 gone, 1 voided, 2 stored
RELEASE = _script(_HOLDER, _RELEASE)  # ARGV: token, "drop" to delete a value that it names, too
MARK_STALE = _script(_MARK_STALE)  # KEYS: values; ARGV: the longest they may stay, ms
SCRIPTS = (LEASE_GET, STEAL, LEASE_SET, RELEASE, MARK_STALE)
TEXTS = {script.sha: script.text for script in SCRIPTS}
