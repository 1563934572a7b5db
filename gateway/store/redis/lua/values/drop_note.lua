-- KEYS: note.
return redis.call('DEL', KEYS[1])
