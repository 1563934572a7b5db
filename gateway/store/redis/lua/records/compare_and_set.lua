-- KEYS: the space of each write. ARGV: for each write the name, then the expected and the new
-- record, each as '1' and its bytes, or as '0' and '' for none.
-- Returns the index of the first write whose expectation fails, or nil.
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
