-- KEYS: the days, and the streams of those that are read.
-- ARGV: the day of the id before which to begin ('' = at the end), its stream id or '' for a whole
-- day, the limit.
-- Returns day, stream id, record, …, the newest first.
local first_day, before, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found = {}

-- All days up to the first one that have a stream, the newest first.
local function days_back()
  local days, seen = {}, {}
  for _, class in ipairs(CLASSES) do
    local last = first_day == '' and '+' or '[' .. first_day
    for _, day in ipairs(redis.call('ZRANGEBYLEX', days_key(class), '-', last)) do
      if not seen[day] then
        seen[day] = true
        table.insert(days, day)
      end
    end
  end
  table.sort(days, function(one, other)
    return one > other
  end)
  return days
end

local days = days_back()

-- The streams of a day and of those before it.
local function need_streams(first)
  if declared[ledger_key('charged', days[first])] and declared[ledger_key('free', days[first])] then
    return
  end
  local streams = {}
  for i = first, math.min(#days, first + MAX_ASKED_DAYS - 1) do
    streams[#streams + 1] = ledger_key('charged', days[i])
    streams[#streams + 1] = ledger_key('free', days[i])
  end
  need(streams)
end

for i, day in ipairs(days) do
  local last, left = '+', digits(limit - #found / 3)
  if day == first_day then
    last = before
  end
  -- Nothing of a day is before its start.
  if last ~= '' then
    need_streams(i)
    local charged = redis.call('XREVRANGE', ledger_key('charged', day), last, '-', 'COUNT', left)
    local free = redis.call('XREVRANGE', ledger_key('free', day), last, '-', 'COUNT', left)
    add_merged(found, day, charged, free, limit, true)
  end
  if #found >= 3 * limit then
    break
  end
end
return found
