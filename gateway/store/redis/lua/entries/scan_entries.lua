-- No KEYS: scans the node that it runs on. ARGV: cursor, pattern of the entries' keys, limit.
-- Returns the next cursor, and the keys of entries.
local page = redis.call('SCAN', read_kept_cursor(ARGV[1]), 'MATCH', ARGV[2], 'COUNT', ARGV[3])
return { keep_cursor(page[1]), page[2] }
