-- KEYS: events, ids of events. ARGV: event id, event, time to live, channel.
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  return 0
end
local expiry = milliseconds(now + tonumber(ARGV[3]))
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('PEXPIREAT', KEYS[2], expiry)
redis.call('PEXPIREAT', KEYS[1], expiry)
redis.call('PUBLISH', ARGV[4], '')
return 0
