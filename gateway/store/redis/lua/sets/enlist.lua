-- KEYS: list. ARGV: lifetime, the members.
for i = 2, #ARGV do
  redis.call('SADD', KEYS[1], ARGV[i])
end
live_until(KEYS[1], now + tonumber(ARGV[1]))
return 0
