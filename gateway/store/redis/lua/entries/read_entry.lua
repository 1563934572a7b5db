-- KEYS: entry. Returns now, and the slots with their values.
return { now, redis.call('HGETALL', KEYS[1]) }
