-- KEYS: entry. Answers now, then the slots and their values as they lie.
return { now, redis.call('HGETALL', KEYS[1]) }
