-- KEYS: books, the record's space. ARGV: name, the expected record, the consumptions.
-- Returns 0 and the stored record ('' = none) if it is another one; else 1, the index of the denied
-- consumption (-1 = none) and the states.
local FIRST = 3
local record = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if record ~= ARGV[2] then
  return { 0, record }
end

local consumptions = read_consumptions(ARGV, FIRST)
local denied = consume(consumptions, false)
if denied then
  end_future_buckets(consumptions)
  return { 1, denied - 1, states(read_consumptions(ARGV, FIRST), denied) }
end
write_buckets(consumptions)
return { 1, -1, states(consumptions) }
