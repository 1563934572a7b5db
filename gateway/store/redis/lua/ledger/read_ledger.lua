-- KEYS: books. ARGV: the first day, the stream id after which to start there ('-' = its first
-- record), the limit, 1 for charged records only. Returns day, stream id, record, ….
local first_day, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local classes = ARGV[4] == '1' and { 'charged' } or CLASSES
local found, count = {}, 0

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

local function is_before(item, other)
  if not item or not other then
    return item
  end
  local ms, n = parse_id(other[1])
  return is_later(ms, n, parse_id(item[1]))
end

local day = next_day('[' .. first_day)
while day and count < limit do
  local from, left = day == first_day and after or '-', digits(limit - count)
  local charged = redis.call('XRANGE', ledger_key('charged', day), from, '+', 'COUNT', left)
  local free = classes[2] and redis.call('XRANGE', ledger_key('free', day), from, '+', 'COUNT', left)
    or {}
  local c, f = 1, 1
  while count < limit and (charged[c] or free[f]) do
    local item
    if is_before(charged[c], free[f]) then
      item, c = charged[c], c + 1
    else
      item, f = free[f], f + 1
    end
    table.insert(found, day)
    table.insert(found, item[1])
    table.insert(found, item[2][2])
    count = count + 1
  end
  day = next_day('(' .. day)
end
return found
