-- KEYS: books. ARGV: the day of the id before which to begin ('' = at the end), its stream id or ''
-- for a whole day, the limit. Returns day, stream id, record, …, the newest first.
local first_day, before, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found, count = {}, 0

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

local function is_after(item, other)
  if not item or not other then
    return item
  end
  local ms, n = parse_id(other[1])
  local own_ms, own_n = parse_id(item[1])
  return is_later(own_ms, own_n, ms, n)
end

for _, day in ipairs(days_back()) do
  local last, left = '+', digits(limit - count)
  if day == first_day then
    last = before
  end
  -- Nothing of a day is before its start.
  if last ~= '' then
    local charged = redis.call('XREVRANGE', ledger_key('charged', day), last, '-', 'COUNT', left)
    local free = redis.call('XREVRANGE', ledger_key('free', day), last, '-', 'COUNT', left)
    local c, f = 1, 1
    while count < limit and (charged[c] or free[f]) do
      local item
      if is_after(charged[c], free[f]) then
        item, c = charged[c], c + 1
      else
        item, f = free[f], f + 1
      end
      table.insert(found, day)
      table.insert(found, item[1])
      table.insert(found, item[2][2])
      count = count + 1
    end
  end
  if count >= limit then
    break
  end
end
return found
