-- KEYS: ordered sets. ARGV: the member, time to live in milliseconds, the most members, the first that
-- may stay ('' = any).
local MAX_TRIMMED = 10 -- commands.MAX_TRIMMED
local member, oldest = ARGV[1], ARGV[4]
local ttl, max_members = ARGV[2], tonumber(ARGV[3])

for _, set in ipairs(KEYS) do
  redis.call('ZADD', set, 0, member)
  local size = redis.call('ZCARD', set)
  if size == 1 then -- it may be new, and `GT` would not set its first expiry
    redis.call('PEXPIRE', set, ttl, 'NX')
  end
  redis.call('PEXPIRE', set, ttl, 'GT')
  if oldest ~= '' then
    local old = redis.call('ZRANGE', set, '-', '(' .. oldest, 'BYLEX', 'LIMIT', 0, MAX_TRIMMED)
    if #old > 0 then
      size = size - redis.call('ZREM', set, unpack(old))
    end
  end
  local excess = math.min(size - max_members, MAX_TRIMMED)
  if excess > 0 then
    redis.call('ZREM', set, unpack(redis.call('ZRANGE', set, 0, excess - 1)))
  end
end
return 0
