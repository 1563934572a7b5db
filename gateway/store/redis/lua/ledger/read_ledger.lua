-- KEYS: books. ARGV: the first day, the stream id after which to start there ('-' = its first
-- record), the limit. Returns day, stream id, record, ….
local first_day, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found, count = {}, 0

for _, day in ipairs(redis.call('ZRANGEBYLEX', LEDGER_DAYS, '[' .. first_day, '+')) do
  local from = day == first_day and after or '-'
  local left = digits(limit - count)
  for _, item in ipairs(redis.call('XRANGE', ledger_key(day), from, '+', 'COUNT', left)) do
    table.insert(found, day)
    table.insert(found, item[1])
    table.insert(found, item[2][2])
    count = count + 1
  end
  if count >= limit then
    break
  end
end
return found
