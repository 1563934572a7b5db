-- KEYS: books, the record's space. ARGV: name, the expected record, the calendar, the consumptions.
-- Returns 0 and the stored record ('' = none) if it is another one; else 1, the index of the denied
-- consumption (-1 = none), the states, and now.
local FIRST = 4
local record = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if record ~= ARGV[2] then
  return { 0, record }
end

if not choose_windows(ARGV[3]) then
  return wrong_calendar()
end
local consumptions = read_consumptions(ARGV, FIRST)
local denied = consume(consumptions, false)
if denied then
  end_future_buckets(consumptions)
  return { 1, denied - 1, states(read_consumptions(ARGV, FIRST), denied), now }
end
write_buckets(consumptions)
return { 1, -1, states(consumptions), now }
