-- KEYS: ordered sets. Returns how many members each has.
local counts = {}
for i, set in ipairs(KEYS) do
  counts[i] = redis.call('ZCARD', set)
end
return counts
