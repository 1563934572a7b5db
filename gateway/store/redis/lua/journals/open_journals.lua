-- KEYS: books. ARGV: the limit, then the workers, none = all.
-- Returns purchase, worker, state, payload, time, consumptions, windows, … by worker, oldest first.
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
    table.insert(found, purchase)
    table.insert(found, worker)
    local fields = redis.call('HMGET', journal_key(purchase), 'state', 'payload', 'at',
      'consumptions', 'windows')
    for i = 1, 5 do
      table.insert(found, fields[i])
    end
  end
end
return found
