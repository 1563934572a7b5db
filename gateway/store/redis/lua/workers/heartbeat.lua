-- KEYS: the workers, what the worker's open purchases reserve.
-- ARGV: worker; the time without a heartbeat and the limit, or '' to look for no expired workers.
-- Returns the workers without a heartbeat for so long before this one, perhaps this worker too.
local MAX_MOVED = 1000
local RESERVED_SECONDS = 7 * 86400
local expired = {}
if ARGV[2] ~= '' then
  local before = digits(now - tonumber(ARGV[2]))
  expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[3])
end
-- Heartbeats from the future, of a clock that was set back, count as of now.
local future = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. digits(now), '+inf', 'LIMIT', 0, MAX_MOVED)
for _, worker in ipairs(future) do
  redis.call('ZADD', KEYS[1], digits(now), worker)
end
redis.call('ZADD', KEYS[1], digits(now), ARGV[1])
-- A gateway of an earlier version deregisters a worker without deleting the hash. The hash may expire,
-- because the journals have what it has.
redis.call('EXPIRE', KEYS[2], RESERVED_SECONDS)
return expired
