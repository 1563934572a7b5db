-- KEYS: shelf. ARGV: the digests.
local moment = next_use()
for i, digest in ipairs(ARGV) do
  if redis.call('ZREM', USED, digest) == 1 then
    redis.call('ZADD', USED, digits(moment + i), digest)
  end
end
return 0
