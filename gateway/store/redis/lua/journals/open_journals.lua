-- KEYS: books. ARGV: the limit, a text that the payload contains ('' = any), then the workers, none =
-- all.
-- Returns purchase, worker, state, payload, time, consumptions, windows, … by worker, oldest first.
local left, text = tonumber(ARGV[1]), ARGV[2]
local workers = { unpack(ARGV, 3) }
-- Each worker has an open journal, or soon goes.
local last = text == '' and left - 1 or -1
if #workers == 0 then
  workers = redis.call('ZRANGE', WORKERS, 0, last)
end
local found = {}
for _, worker in ipairs(workers) do
  local open = left > 0 and redis.call('ZRANGE', open_key(worker), 0, last) or {}
  for _, purchase in ipairs(open) do
    local fields = left > 0 and redis.call('HMGET', journal_key(purchase), 'state', 'payload', 'at',
      'consumptions', 'windows')
    if fields and (text == '' or (fields[2] and fields[2]:find(text, 1, true))) then
      left = left - 1
      table.insert(found, purchase)
      table.insert(found, worker)
      for i = 1, 5 do
        table.insert(found, fields[i])
      end
    end
  end
end
return found
