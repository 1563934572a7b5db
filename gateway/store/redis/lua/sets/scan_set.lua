-- KEYS: set. ARGV: cursor, limit. Returns the next cursor, and members.
local page = redis.call('SSCAN', KEYS[1], read_kept_cursor(ARGV[1]), 'COUNT', ARGV[2])
return { keep_cursor(page[1]), page[2] }
