-- KEYS: the refusals, the ledger.
-- ARGV: the limit, and 1 if the current minute is over too.
-- Returns how many records were appended.
local limit, ends_minute = tonumber(ARGV[1]), ARGV[2] == '1'

local records, fields = {}, {}
for _, row in ipairs(redis.call('LRANGE', REFUSAL_ROWS, 0, limit - 1)) do
  local row_minute, key = row:match('^(%d+) ([^ ]*) ')
  -- Not `<`: a clock that steps back must not keep the counts of its future.
  if row_minute == minute and not ends_minute then
    break
  end
  local found = redis.call('HMGET', REFUSALS, 'record ' .. row, 'count ' .. row)
  table.insert(records, found[1] .. found[2] .. '}')
  for _, field in ipairs({ 'record ' .. row, 'count ' .. row, 'rows ' .. row_minute .. ' ' .. key }) do
    table.insert(fields, field)
  end
end
if #records > 0 then
  append_records(records, false)
  write_many('HDEL', REFUSALS, fields, 1)
  redis.write('LTRIM', REFUSAL_ROWS, #records, -1)
end
return #records
