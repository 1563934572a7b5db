-- KEYS: the space of the index, the space of the record. ARGV: name. Returns the record or nil.
local name = redis.call('HGET', KEYS[1], ARGV[1])
return name and redis.call('HGET', KEYS[2], name)
