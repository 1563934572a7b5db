-- KEYS: value. ARGV: the bytes that it must have, or nothing.
if ARGV[1] and redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
