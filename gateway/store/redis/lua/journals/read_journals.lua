-- KEYS: journals. ARGV: a text that the payload contains ('' = any). Returns state, payload, time,
-- consumptions and windows of each open one; '' for another.
local text, found = ARGV[1], {}
for i, key in ipairs(KEYS) do
  local fields = redis.call('HMGET', key, 'state', 'payload', 'at', 'consumptions', 'windows')
  local is_open = fields[2] and fields[1] ~= 'settled'
  found[i] = is_open and (text == '' or fields[2]:find(text, 1, true)) and fields or ''
end
return found
