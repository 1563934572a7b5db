-- KEYS: books, the record's space. ARGV: name, the record as expected, the takes.
-- Answers 0, the record as it is ('' if gone); or 1, the index of the refused take (-1 = none)
-- and the states.
local FIRST_TAKE = 3
local record = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if record ~= ARGV[2] then
  return { 0, record }
end

local takes = read_takes(ARGV, FIRST_TAKE)
local refused = draw(takes, false)
if refused then
  return { 1, refused - 1, states(read_takes(ARGV, FIRST_TAKE), refused) }
end
write_buckets(takes)
return { 1, -1, states(takes) }
