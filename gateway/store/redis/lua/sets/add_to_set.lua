-- KEYS: set. ARGV: time to live, the members.
for i = 2, #ARGV do
  redis.call('SADD', KEYS[1], ARGV[i])
end
expire_at_least(KEYS[1], now + tonumber(ARGV[1]))
return 0
