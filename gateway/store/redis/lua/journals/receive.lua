-- KEYS: the journal. ARGV: payload. Returns the journal's state afterwards.
local key = KEYS[1]
local state = redis.call('HGET', key, 'state')
if not state then
  return 'unknown'
end
if state == 'settled' then
  return state
end
redis.call('HSET', key, 'state', 'received', 'payload', ARGV[1])
return 'received'
