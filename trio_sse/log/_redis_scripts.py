"""What runs inside Redis: each script is one step that nobody sees half of.

A shard is three keys with one hash tag, which Redis Cluster therefore keeps together:

- ``…:meta``, a hash: ``epoch``, and ``n``, the number of the newest event;
- ``…:events``, a stream. Entry ``<n>-<ms>`` is event n, stored at that time. Numbers are
  dense, so that a missing one is a loss. Its one field is named for the epoch that it was
  written in, so that a reader whose stream was replaced under it notices at the next entry;
  its value is the event. Redis stores the name once per block of entries.
- ``…:keys``, a sorted set of idempotency keys by n.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple, final


class Keys(NamedTuple):
    """The names of what one shard has in Redis."""

    meta: str
    events: str
    keys: str

    @classmethod
    def of(cls, name: str, shard: int) -> Keys:
        tag = f"{{{name}:{shard}}}"
        return cls(f"{tag}:meta", f"{tag}:events", f"{tag}:keys")


@final
class Script:
    """A Lua script, by its text and by its digest."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()  # Redis's name for it


# The stream may be there without its meta, which was evicted or deleted: numbers go on.
_EPOCH: Final = """
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  local n = newest and string.match(newest[1], '^%d+') or '0'
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'n', n)
end
"""

APPEND: Final = Script(
    _EPOCH
    + """
-- ARGV: an epoch if there is none; how many events to keep; then event, key, event, key, ...
-- Answers: the epoch; then n for each, or -n where its key belongs to another event.
local max = tonumber(ARGV[2])
local now = redis.call('TIME')
local ms = string.format('-%s%03d', now[1], math.floor(now[2] / 1000))
local answer = {epoch}
for i = 3, #ARGV, 2 do
  local event, key, n = ARGV[i], ARGV[i + 1], nil
  if key ~= '' then
    local known = redis.call('ZSCORE', KEYS[3], key)
    if known then
      known = string.format('%.0f', known)
      local held = redis.call('XRANGE', KEYS[2], known, known)[1]
      if held then
        n = held[2][2] == event and tonumber(known) or -tonumber(known)
      end
    end
  end
  if not n then
    n = redis.call('HINCRBY', KEYS[1], 'n', 1)
    local id = string.format('%.0f', n) .. ms
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', max, id, epoch, event)
    if key ~= '' then
      redis.call('ZADD', KEYS[3], n, key)
      redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', n - max)
    end
  end
  answer[#answer + 1] = n
end
return answer
"""
)

LOOK: Final = Script(
    _EPOCH
    + """
-- ARGV: an epoch if there is none; a number n.
-- Answers: the epoch; the newest number; the oldest entry's id; id, field and digest of
-- entry n. What there is not is ''.
local newest = redis.call('HGET', KEYS[1], 'n') or '0'
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local answer = {epoch, newest, oldest and oldest[1] or '', '', '', ''}
local held = redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2])[1]
if held then
  answer[4], answer[5], answer[6] = held[1], held[2][1], redis.sha1hex(held[2][2])
end
return answer
"""
)

RENEW: Final = Script(
    """
-- ARGV: an epoch, and the one that is to follow it, if no other has yet.
-- Answers: the epoch from now on.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch == ARGV[1] then
  epoch = ARGV[2]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
return epoch or ''
"""
)

PROBE: Final = Script(
    """
-- Whether events would be taken: it writes, so that what refuses writing refuses this.
return redis.call('HSET', KEYS[1], 'probe', '')
"""
)

TRIM: Final = Script(
    """
-- ARGV: an age in milliseconds. What is older goes, found by halving.
local function from(n)
  local entry = redis.call('XRANGE', KEYS[2], string.format('%.0f', n), '+', 'COUNT', 1)[1]
  if entry then
    local found, ms = string.match(entry[1], '^(%d+)-(%d+)$')
    return tonumber(found), tonumber(ms)
  end
end
local now = redis.call('TIME')
local limit = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[1])
local old, ms = from(0)
if not old or ms >= limit then
  return 0
end
local new = tonumber(redis.call('HGET', KEYS[1], 'n') or '0') + 1
while old + 1 < new do
  local middle = math.floor((old + new) / 2)
  local found, ms = from(middle)
  if not found or ms >= limit then
    new = middle
  else
    old = found
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', old)
return redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f', old + 1))
"""
)
