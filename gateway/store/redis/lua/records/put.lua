-- KEYS: the space of each change. ARGV: for each change the name, then twice whether there is
-- such a record ('1' or '0') and its bytes: as it should be now, and as it shall be.
-- Answers the index of the first change whose expectation does not hold, or nil.
local WIDTH = 5

for i, space in ipairs(KEYS) do
  local at = (i - 1) * WIDTH
  local expected = ARGV[at + 2] == '1' and ARGV[at + 3]
  if redis.call('HGET', space, ARGV[at + 1]) ~= expected then
    return i - 1
  end
end

for i, space in ipairs(KEYS) do
  local at = (i - 1) * WIDTH
  if ARGV[at + 4] == '1' then
    redis.call('HSET', space, ARGV[at + 1], ARGV[at + 5])
  else
    redis.call('HDEL', space, ARGV[at + 1])
  end
end
return nil
