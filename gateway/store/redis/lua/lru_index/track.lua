-- KEYS: those of the LRU index.
-- ARGV: digest, its bytes, time to live, the bound in bytes.
-- Returns the evicted digests.
local digest, size, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local expires = now + tonumber(ARGV[3])
if redis.call('HEXISTS', SIZES, digest) == 1 then
  expires = math.max(expires, expiry_of(digest))
  untrack(digest)
end
local evicted = evict_to(max_bytes - size)
redis.call('ZADD', USED, next_use(), digest)
redis.call('ZADD', EXPIRES, digits(expires), digest)
redis.call('HSET', SIZES, digest, ARGV[2])
redis.call('INCRBY', TOTAL, ARGV[2])
return evicted
