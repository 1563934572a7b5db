-- KEYS: shelf. ARGV: digest, its bytes, lifetime, the most bytes. Answers the digests that went.
local digest, size, most_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local ends = math.max(now + tonumber(ARGV[3]), end_of(digest))
take_off(digest)
local victims = make_room(most_bytes - size)
redis.call('ZADD', USED, digits(next_use()), digest)
redis.call('ZADD', ENDS, digits(ends), digest)
redis.call('HSET', SIZES, digest, digits(size))
redis.call('INCRBY', TOTAL, digits(size))
return victims
