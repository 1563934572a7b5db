-- KEYS: the space that leads on, the space of the record. ARGV: name. Answers the record or nil.
local name = redis.call('HGET', KEYS[1], ARGV[1])
return name and redis.call('HGET', KEYS[2], name)
