-- KEYS: those of the LRU index.
-- ARGV: digest, its bytes, time to live, the bound in bytes.
-- Returns the evicted digests.
local digest, size, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local expires = math.max(now + tonumber(ARGV[3]), expiry_of(digest))
untrack(digest)
local evicted = evict_to(max_bytes - size)
redis.call('ZADD', USED, digits(next_use()), digest)
redis.call('ZADD', EXPIRES, digits(expires), digest)
redis.call('HSET', SIZES, digest, digits(size))
redis.call('INCRBY', TOTAL, digits(size))
return evicted
