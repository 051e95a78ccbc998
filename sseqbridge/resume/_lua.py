"""The Lua scripts of a log in Redis: each runs atomically on the server.

A stream has four keys, which share a hash tag and so a slot: `events` (a Redis stream with the ids
`fence-number`), `lease` (the producer's token, with a TTL), `fence` (the newest token: only its owner may
write) and `readers` (a sorted set of reading processes, scored by the end of their heartbeat's TTL).

Each script is idempotent: it may run again if its first reply was lost. The producer chooses the ids and
these rise, so Redis itself refuses to write an entry twice.
"""

from __future__ import annotations

__all__ = ["CANCEL", "CLAIM", "DELETE", "HEARTBEAT", "RELEASE", "RENEW", "WRITE"]

# The last entry's kind is "event", or the name of a field that ends a stream, or "deleted".
_COMMON = """
local function last_of(events)
  local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  if not last then return '', nil end
  local kind = 'event'
  for i = 1, #last[2], 2 do
    local name = last[2][i]
    if name == 'data' then return last[1], 'event' end
    if name == 'cancel' and last[2][i + 1] == 'deleted' then return last[1], 'deleted' end
    if name == 'end' or name == 'error' or name == 'cancel' or name == 'refused' then kind = name end
  end
  return last[1], kind
end
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local function fence_of(text)
  return tonumber(string.match(text or '', '^%d+')) or 0
end
local function is_stale(token, lease, fence, where)
  local writer = redis.call('GET', fence)
  if writer then return writer ~= token end
  -- The fence was evicted or lost: the lease and the entries show whether there was a newer token.
  return math.max(fence_of(redis.call('GET', lease)), fence_of(where)) > fence_of(token)
end
local function is_end(kind)
  return kind and kind ~= 'event'
end
local function owner_of(text)
  return string.match(text or '', ':(.*)$')
end
local function next_fence(fence, where)
  return string.format('%.0f', math.max(now(), fence_of(redis.call('GET', fence)) + 1, fence_of(where) + 1))
end
"""

# KEYS: events, lease, fence. ARGV: owner, lease TTL, retention, may begin, takeover, longest TTL of the fence or "".
# Returns the state, the fence, the last id, a remark ("begins", "certain", or the id of what is left of a deleted
# stream), and the TTL of the fence.
CLAIM = (
    _COMMON
    + """
local where, kind = last_of(KEYS[1])
local lease = redis.call('GET', KEYS[2])
if lease then
  local fence, owner = string.match(lease, '^(%d+):(.*)$')
  -- Not written by a log: it would never be renewed, and perhaps never expire.
  if not fence then return redis.error_reply('ERR ' .. KEYS[2] .. ' holds no lease of a log') end
  if owner == ARGV[1] then return {'elected', fence, where, kind and '' or 'begins', -1} end
  return {'live', '0', where, '', -1}
end
local ttl = math.max(-1, redis.call('PTTL', KEYS[3]))
local is_lost = owner_of(redis.call('GET', KEYS[3])) == 'released'
is_lost = is_lost or (ARGV[6] ~= '' and (ttl < 0 or ttl <= tonumber(ARGV[6])))
local remark = is_lost and 'certain' or ''
local alone = kind == 'refused' and redis.call('XLEN', KEYS[1]) == 1
if not kind or alone or kind == 'deleted' then
  if ARGV[4] == '0' then
    if kind == 'deleted' then return {'none', '0', '', where, ttl} end
    return {kind and 'ended' or 'none', '0', where, '', ttl}
  end
  if kind then redis.call('XTRIM', KEYS[1], 'MAXLEN', 0) end
  remark = 'begins'
elseif kind ~= 'event' and (kind ~= 'refused' or ARGV[5] == '0') then
  return {'ended', '0', where, '', ttl}
elseif kind == 'refused' then
  redis.call('XDEL', KEYS[1], where)
  remark = ''
elseif ARGV[5] == '0' or not is_lost then
  return {'lost', '0', where, remark, ttl}
else
  remark = ''
end
local fence = next_fence(KEYS[3], where)
local token = fence .. ':' .. ARGV[1]
redis.call('SET', KEYS[2], token, 'PX', ARGV[2])
redis.call('SET', KEYS[3], token, 'PX', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'elected', fence, remark == 'begins' and '' or where, remark, ttl}
"""
)

# KEYS: events, lease, fence. ARGV: token, lease TTL (0: release the lease), retention, retention of a refusal,
# max_events, number of the first entry; then for each entry the number of its arguments, and these.
WRITE = (
    _COMMON
    + """
local where, kind = last_of(KEYS[1])
if is_stale(ARGV[1], KEYS[2], KEYS[3], where) then return 0 end
if ARGV[2] ~= '0' and not is_end(kind) then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[3])
local fence = string.match(ARGV[1], '^%d+')
local written = -1
local of, last = string.match(where, '^(%d+)-(%d+)$')
if of == fence then written = tonumber(last) end
local number, at = tonumber(ARGV[6]), 7
-- An end follows all entries, even if the writer was stopped before it got the reply for its last entries.
if ARGV[2] == '0' and not is_end(kind) then number = math.max(number, written + 1) end
while at <= #ARGV do
  local size = tonumber(ARGV[at])
  if number > written then
    local id = fence .. '-' .. string.format('%.0f', number)
    if ARGV[5] == '0' then
      redis.call('XADD', KEYS[1], id, unpack(ARGV, at + 1, at + size))
    else
      redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[5], id, unpack(ARGV, at + 1, at + size))
    end
  end
  number, at = number + 1, at + size + 1
end
local kept = ARGV[3]
if ARGV[2] == '0' then
  if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
  local _, kind = last_of(KEYS[1])
  if kind == 'refused' and redis.call('XLEN', KEYS[1]) == 1 then kept = ARGV[4] end
end
redis.call('PEXPIRE', KEYS[1], kept)
return 1
"""
)

# KEYS: events, lease, fence, readers. ARGV: token, lease TTL, retention.
RENEW = (
    _COMMON
    + """
local where, kind = last_of(KEYS[1])
if is_stale(ARGV[1], KEYS[2], KEYS[3], where) then return -1 end
-- A renewal that arrives after the end must not revive the lease.
if not is_end(kind) then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('ZCOUNT', KEYS[4], now(), '+inf')
"""
)

# KEYS: lease, fence. ARGV: token. The fence records the release, for otherwise readers would wait for a renewal.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
if redis.call('GET', KEYS[2]) == ARGV[1] then
  -- pcall: without memory, readers wait for a renewal.
  redis.pcall('SET', KEYS[2], string.match(ARGV[1], '^%d+') .. ':released', 'KEEPTTL')
end
return 1
"""

# KEYS: events, lease, fence. ARGV: owner, retention, then the fields of the entry.
CANCEL = (
    _COMMON
    + """
local where, kind = last_of(KEYS[1])
if kind == 'cancel' and owner_of(redis.call('GET', KEYS[3])) == ARGV[1] then return 1 end
if kind and kind ~= 'event' then return 0 end
if not kind and redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local fence = next_fence(KEYS[3], where)
-- DEL first: a script that has written is not refused for lack of memory.
redis.call('DEL', KEYS[2])
redis.call('XADD', KEYS[1], fence .. '-0', unpack(ARGV, 3))
redis.call('SET', KEYS[3], fence .. ':' .. ARGV[1], 'PX', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
)

# KEYS: events, lease, fence, readers. ARGV: owner, retention, then the fields of the entry that is left.
DELETE = (
    _COMMON
    + """
local where, kind = last_of(KEYS[1])
if kind == 'deleted' then return owner_of(redis.call('GET', KEYS[3])) == ARGV[1] and 1 or 0 end
if not kind and redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local fence = next_fence(KEYS[3], where)
-- DEL first: a script that has written is not refused for lack of memory.
redis.call('DEL', KEYS[2], KEYS[4])
redis.call('XADD', KEYS[1], 'MAXLEN', '=', 1, fence .. '-0', unpack(ARGV, 3))
redis.call('SET', KEYS[3], fence .. ':' .. ARGV[1], 'PX', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
)

# KEYS: for each stream events, lease, readers, fence. ARGV: reader, heartbeat TTL. Returns for each stream whether its
# lease is held, its last id, whether its producer has released the lease, and the TTL of its fence.
HEARTBEAT = (
    _COMMON
    + """
local time = now()
local found = {}
for i = 1, #KEYS, 4 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i + 2], '-inf', time)
  -- pcall: without memory for the heartbeat, reading continues.
  redis.pcall('ZADD', KEYS[i + 2], time + tonumber(ARGV[2]), ARGV[1])
  redis.call('PEXPIRE', KEYS[i + 2], ARGV[2])
  local where = last_of(KEYS[i])
  local is_released = owner_of(redis.call('GET', KEYS[i + 3])) == 'released'
  local ttl = math.max(-1, redis.call('PTTL', KEYS[i + 3]))
  found[#found + 1] = {redis.call('EXISTS', KEYS[i + 1]), where, is_released and 1 or 0, ttl}
end
return found
"""
)
