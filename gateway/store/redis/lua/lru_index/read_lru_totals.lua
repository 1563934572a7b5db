-- KEYS: those of the LRU index.
-- Returns the number of digests and their bytes, with expired ones that no sweep has removed yet.
return { redis.call('ZCARD', USED), read_total() }
