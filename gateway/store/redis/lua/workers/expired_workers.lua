-- KEYS: the workers. ARGV: the time without a heartbeat, the limit.
local before = digits(now - tonumber(ARGV[1]))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[2])
