-- KEYS: value. ARGV: the bytes, '1' = only if absent, time to live ('' = none).
-- Returns 1, or 0 if there is one already.
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('PEXPIREAT', KEYS[1], milliseconds(now + tonumber(ARGV[3])))
end
return 1
