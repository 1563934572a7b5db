-- KEYS: value. ARGV: the bytes, '1' = if absent, time to live in milliseconds ('' = none), the bytes that
-- it may have.
-- Returns 1, or 0 if a condition is not met; there is none without the '1' and such bytes.
local if_absent = ARGV[2] == '1'
if if_absent or #ARGV > 3 then
  local current = redis.call('GET', KEYS[1])
  local is_met = if_absent and not current
  for i = 4, #ARGV do
    is_met = is_met or current == ARGV[i]
  end
  if not is_met then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
