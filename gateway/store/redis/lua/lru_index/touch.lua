-- KEYS: those of the LRU index. ARGV: the digests.
local first = tonumber(next_use())
for i, digest in ipairs(ARGV) do
  if redis.call('ZREM', USED, digest) == 1 then
    redis.call('ZADD', USED, digits(first + i), digest)
  end
end
return 0
