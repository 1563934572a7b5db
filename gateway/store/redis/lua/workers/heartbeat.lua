-- KEYS: the workers. ARGV: worker.
local MAX_MOVED = 1000
-- Heartbeats from the future, of a clock that was set back, count as of now.
local future = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. digits(now), '+inf', 'LIMIT', 0, MAX_MOVED)
for _, worker in ipairs(future) do
  redis.call('ZADD', KEYS[1], digits(now), worker)
end
redis.call('ZADD', KEYS[1], digits(now), ARGV[1])
return 0
