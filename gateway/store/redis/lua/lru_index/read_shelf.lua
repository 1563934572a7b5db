-- KEYS: shelf. Answers how many lie there and their bytes, without what is past its time.
local count, bytes, ended = redis.call('ZCARD', USED), total(), nil
local first = 0
repeat
  ended = redis.call('ZRANGEBYSCORE', ENDS, '-inf', digits(now), 'LIMIT', first, MOST_VICTIMS)
  for _, digest in ipairs(ended) do
    bytes = bytes - tonumber(redis.call('HGET', SIZES, digest))
  end
  count = count - #ended
  first = first + #ended
until #ended == 0
return { count, bytes }
