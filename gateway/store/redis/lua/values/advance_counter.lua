-- KEYS: value. ARGV: the amount, the modulus, the time to live of a new counter.
-- Returns the count before.
local stored = redis.call('GET', KEYS[1])
local count = tonumber(stored or 0)
local advanced = digits((count + tonumber(ARGV[1])) % tonumber(ARGV[2]))
if stored then
  redis.call('SET', KEYS[1], advanced, 'KEEPTTL')
else
  redis.call('SET', KEYS[1], advanced)
  redis.call('PEXPIREAT', KEYS[1], milliseconds(now + tonumber(ARGV[3])))
end
return count
