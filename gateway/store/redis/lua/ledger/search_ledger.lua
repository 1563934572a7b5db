-- KEYS: the days of the kind, and the streams of those that are searched.
-- ARGV: charged or free, the text, the first and the last day, the stream id from which to start on
-- the first one, the last milliseconds, the limit.
-- Returns how many records were scanned, day and stream id of the last one if the limit was reached,
-- else '' twice, and a list of day, stream id, record, … of those that contain the text.
local class, text, day, last_day = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local from, to, limit = ARGV[5], ARGV[6], tonumber(ARGV[7])
local scanned, found = 0, {}

local days = redis.call('ZRANGEBYLEX', days_key(class), '[' .. day, '[' .. last_day)
-- The streams of a day and of those after it.
local function need_streams(first)
  if declared[ledger_key(class, days[first])] then
    return
  end
  local streams = {}
  for i = first, math.min(#days, first + MAX_ASKED_DAYS - 1) do
    streams[#streams + 1] = ledger_key(class, days[i])
  end
  need(streams)
end

for i, one in ipairs(days) do
  need_streams(i)
  local start = one == day and from or '-'
  local page = redis.call('XRANGE', ledger_key(class, one), start, to, 'COUNT', digits(limit - scanned))
  for _, item in ipairs(page) do
    if item[2][2]:find(text, 1, true) then
      table.insert(found, one)
      table.insert(found, item[1])
      table.insert(found, item[2][2])
    end
  end
  scanned = scanned + #page
  if scanned >= limit then
    return { scanned, one, page[#page][1], found }
  end
end
return { scanned, '', '', found }
