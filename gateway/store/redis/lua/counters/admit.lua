-- KEYS: the space of each expected record, then the counters. ARGV: the calendar, the number of expected
-- records, name and value of each, the consumptions as JSON, for each whether its limit is a shadow ('1'
-- or '0'), and a plan with what belongs to it ('' = none).
-- Returns 0 and all these records as they are stored ('' = none) if one is another; else 1, the index
-- of the denied consumption (-1 = none), the states, now, and the indexes of the consumptions that
-- exceed a shadow limit.

-- What to return if a record is not as expected; else nil.
local function changed_records()
  local stored, is_changed = { 0 }, false
  for i = 1, expected do
    stored[i + 1] = redis.call('HGET', KEYS[i], ARGV[2 * i + 1]) or ''
    is_changed = is_changed or stored[i + 1] ~= ARGV[2 * i + 2]
  end
  return is_changed and stored or nil
end

local changed = changed_records()
if changed then
  return changed
end

if not choose_windows(ARGV[1]) then
  return wrong_calendar()
end
local arguments = unpack_consumptions(ARGV[first], ARGV[first + 1])
local consumptions = read_consumptions(arguments, 1)
local denied, exceeded = consume(consumptions, false)
if denied then
  end_future_buckets(consumptions)
  return { 1, denied - 1, states(read_consumptions(arguments, 1), denied), now, {} }
end
write_buckets(consumptions)
return { 1, -1, states(consumptions), now, exceeded }
