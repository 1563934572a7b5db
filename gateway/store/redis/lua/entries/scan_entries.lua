-- No KEYS: it takes the entries that its node has. ARGV: cursor, pattern of their keys, how many.
-- Answers the next cursor, then the keys, each with its slots and their values.
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local found = {}
for _, key in ipairs(page[2]) do
  table.insert(found, key)
  table.insert(found, redis.call('HGETALL', key))
end
return { page[1], found }
