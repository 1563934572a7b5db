-- KEYS: LRU index. Returns the number of digests and their bytes, without expired ones.
local count, bytes, expired = redis.call('ZCARD', USED), read_total(), nil
local first = 0
repeat
  expired = redis.call('ZRANGEBYSCORE', EXPIRES, '-inf', digits(now), 'LIMIT', first, MAX_EVICTIONS)
  for _, digest in ipairs(expired) do
    bytes = bytes - tonumber(redis.call('HGET', SIZES, digest))
  end
  count = count - #expired
  first = first + #expired
until #expired == 0
return { count, bytes }
