-- KEYS: ordered sets. ARGV: the member, time to live in milliseconds, the most members, the first that
-- may stay ('' = any).
local MAX_TRIMMED = 10 -- commands.MAX_TRIMMED
local member, before = ARGV[1], ARGV[4] ~= '' and '(' .. ARGV[4]
local ttl, max_members = ARGV[2], tonumber(ARGV[3])

for _, set in ipairs(KEYS) do
  redis.call('ZADD', set, '0', member)
  local size = redis.call('ZCARD', set)
  if size == 1 then -- it may be new, and `GT` would not set its first expiry
    redis.call('PEXPIRE', set, ttl, 'NX')
  end
  redis.call('PEXPIRE', set, ttl, 'GT')
  local removed = 0 -- the first ones, which are the oldest
  if before then -- to count them takes half as long as to read them, and mostly there are none
    removed = redis.call('ZLEXCOUNT', set, '-', before)
    if removed > MAX_TRIMMED then
      removed = MAX_TRIMMED
    end
  end
  if size - removed > max_members then
    removed = removed + math.min(size - removed - max_members, MAX_TRIMMED)
  end
  if removed > 0 then
    redis.call('ZREM', set, unpack(redis.call('ZRANGE', set, 0, removed - 1)))
  end
end
return 0
