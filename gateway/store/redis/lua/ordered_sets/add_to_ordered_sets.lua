-- KEYS: ordered sets. ARGV: the member, time to live, the most members, the first that may stay ('' =
-- any).
local MAX_TRIMMED = 10 -- commands.MAX_TRIMMED
local member, oldest = ARGV[1], ARGV[4]
local expires, max_members = now + tonumber(ARGV[2]), tonumber(ARGV[3])

for _, set in ipairs(KEYS) do
  redis.call('ZADD', set, 0, member)
  expire_at_least(set, expires)
  if oldest ~= '' then
    local old = redis.call('ZRANGE', set, '-', '(' .. oldest, 'BYLEX', 'LIMIT', 0, MAX_TRIMMED)
    if #old > 0 then
      redis.call('ZREM', set, unpack(old))
    end
  end
  local excess = math.min(redis.call('ZCARD', set) - max_members, MAX_TRIMMED)
  if excess > 0 then
    redis.call('ZREM', set, unpack(redis.call('ZRANGE', set, 0, excess - 1)))
  end
end
return 0
