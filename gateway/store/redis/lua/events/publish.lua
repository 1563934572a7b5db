-- KEYS: events, ids of events. ARGV: event id, event, time to live, channel.
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  return 0
end
local expiry = milliseconds(now + tonumber(ARGV[3]))
redis.write('SADD', KEYS[2], ARGV[1])
redis.write('RPUSH', KEYS[1], ARGV[2])
redis.write('PEXPIREAT', KEYS[2], expiry)
redis.write('PEXPIREAT', KEYS[1], expiry)
server_call('PUBLISH', ARGV[4], '')
return 0
