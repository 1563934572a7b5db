-- No KEYS: scans the node that it runs on. ARGV: cursor, pattern of the entries' keys, limit.
-- Returns the next cursor, then the keys, each with its slots and their values.
local page = redis.call('SCAN', read_kept_cursor(ARGV[1]), 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local found = {}
for _, key in ipairs(page[2]) do
  table.insert(found, key)
  table.insert(found, redis.call('HGETALL', key))
end
return { keep_cursor(page[1]), found }
