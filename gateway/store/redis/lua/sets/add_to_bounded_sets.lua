-- KEYS: bounded sets. ARGV: time to live, the bound of each set, the members.
-- Returns the members that all sets have now.
local expires = now + tonumber(ARGV[1])
local FIRST = 2 + #KEYS
local MAX_EXPIRED = 100 -- more than one command adds, so expired members never pile up

local function has_room(member)
  for i, set in ipairs(KEYS) do
    local is_full = redis.call('ZCOUNT', set, '(' .. digits(now), '+inf') >= tonumber(ARGV[1 + i])
    if is_full and tonumber(redis.call('ZSCORE', set, member) or 0) <= now then
      return false
    end
  end
  return true
end

for _, set in ipairs(KEYS) do
  local expired = redis.call('ZRANGEBYSCORE', set, '-inf', digits(now), 'LIMIT', 0, MAX_EXPIRED)
  if #expired > 0 then
    redis.call('ZREM', set, unpack(expired))
  end
end
local added = {}
for i = FIRST, #ARGV do
  if has_room(ARGV[i]) then
    for _, set in ipairs(KEYS) do
      redis.call('ZADD', set, digits(expires), ARGV[i])
    end
    table.insert(added, ARGV[i])
  end
end
if #added > 0 then
  local expiry = milliseconds(expires)
  for _, set in ipairs(KEYS) do
    expire_at_least(set, expiry)
  end
end
return added
