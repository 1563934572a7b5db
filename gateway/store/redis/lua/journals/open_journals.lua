-- KEYS: books. ARGV: the limit, then the workers, none = all.
-- Returns purchase, worker, state, payload, time, … by worker, oldest first.
local left = tonumber(ARGV[1])
local workers = { unpack(ARGV, 2) }
if #workers == 0 then
  workers = redis.call('ZRANGE', WORKERS, 0, left - 1) -- each has an open journal, or soon goes
end
local found = {}
for _, worker in ipairs(workers) do
  local open = left > 0 and redis.call('ZRANGE', open_key(worker), 0, left - 1) or {}
  left = left - #open
  for _, purchase in ipairs(open) do
    local fields = redis.call('HMGET', journal_key(purchase), 'state', 'payload', 'at')
    table.insert(found, purchase)
    table.insert(found, worker)
    table.insert(found, fields[1])
    table.insert(found, fields[2])
    table.insert(found, fields[3])
  end
end
return found
