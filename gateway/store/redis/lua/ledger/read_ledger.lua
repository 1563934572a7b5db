-- KEYS: the days, and the streams of those that are read.
-- ARGV: the first day, the stream id after which to start there ('-' = its first record), the limit, 1
-- for charged records only.
-- Returns day, stream id, record, ….
local first_day, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local classes = ARGV[4] == '1' and { 'charged' } or CLASSES
local found = {}

-- The first day at or after a bound of ZRANGEBYLEX that has a stream; nil if there is none.
local function next_day(from)
  local earliest
  for _, class in ipairs(classes) do
    local day = redis.call('ZRANGEBYLEX', days_key(class), from, '+', 'LIMIT', 0, 1)[1]
    if day and (not earliest or day < earliest) then
      earliest = day
    end
  end
  return earliest
end

-- Streams of the days from one on. Most pages are of one day, so they are asked for when one is missing.
local function need_streams(day)
  if declared[ledger_key(classes[1], day)] and declared[ledger_key(classes[#classes], day)] then
    return
  end
  local streams = {}
  for _, class in ipairs(classes) do
    local days = redis.call('ZRANGEBYLEX', days_key(class), '[' .. day, '+', 'LIMIT', 0, MAX_ASKED_DAYS)
    for _, one in ipairs(days) do
      for _, each in ipairs(classes) do
        streams[#streams + 1] = ledger_key(each, one)
      end
    end
  end
  need(streams)
end

local day = next_day('[' .. first_day)
while day and #found < 3 * limit do
  need_streams(day)
  local from, left = day == first_day and after or '-', digits(limit - #found / 3)
  local charged = redis.call('XRANGE', ledger_key('charged', day), from, '+', 'COUNT', left)
  local free = classes[2] and redis.call('XRANGE', ledger_key('free', day), from, '+', 'COUNT', left)
    or {}
  add_merged(found, day, charged, free, limit, false)
  day = next_day('(' .. day)
end
return found
