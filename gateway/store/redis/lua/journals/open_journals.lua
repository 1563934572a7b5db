-- KEYS: books. ARGV: the workers, none = all.
-- Returns purchase, worker, state, payload, consumptions, … by worker, oldest first.
local workers = #ARGV > 0 and ARGV or redis.call('ZRANGE', WORKERS, 0, -1)
local found = {}
for _, worker in ipairs(workers) do
  for _, purchase in ipairs(redis.call('ZRANGE', open_key(worker), 0, -1)) do
    local fields = redis.call('HMGET', journal_key(purchase), 'state', 'payload', 'consumptions')
    table.insert(found, purchase)
    table.insert(found, worker)
    table.insert(found, fields[1])
    table.insert(found, fields[2])
    table.insert(found, fields[3])
  end
end
return found
