-- KEYS: hits of images. ARGV: time to live, how many to add to each.
local expires = milliseconds(now + tonumber(ARGV[1]))
for i, hits in ipairs(KEYS) do
  redis.call('HINCRBY', hits, 'count', ARGV[1 + i])
  redis.call('HSET', hits, 'at', digits(now))
  redis.call('PEXPIREAT', hits, expires)
end
return 0
