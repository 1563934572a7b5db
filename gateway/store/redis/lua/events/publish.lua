-- KEYS: events, ids of events. ARGV: event id, event, lifetime, channel.
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  return 0
end
local ends = milliseconds(now + tonumber(ARGV[3]))
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('PEXPIREAT', KEYS[2], ends)
redis.call('PEXPIREAT', KEYS[1], ends)
redis.call('PUBLISH', ARGV[4], '')
return 0
