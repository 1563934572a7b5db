-- KEYS: hits of images. Returns count and time of each, one after the other; 0 without any.
local found = {}
for _, hits in ipairs(KEYS) do
  local fields = redis.call('HMGET', hits, 'count', 'at')
  table.insert(found, fields[1] or '0')
  table.insert(found, fields[2] or '0')
end
return found
