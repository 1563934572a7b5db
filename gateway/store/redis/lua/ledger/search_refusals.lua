-- KEYS: the refusals. ARGV: the text, the limit. Returns records and counts.
local text, limit = ARGV[1], tonumber(ARGV[2])
local found = {}
for _, row in ipairs(redis.call('LRANGE', REFUSAL_ROWS, 0, limit - 1)) do
  local record = redis.call('HGET', REFUSALS, 'record ' .. row)
  if record and record:find(text, 1, true) then
    table.insert(found, record)
    table.insert(found, redis.call('HGET', REFUSALS, 'count ' .. row))
  end
end
return found
