-- KEYS: the workers, and the open purchases of each. ARGV: the limit ('' = none), then the workers, none
-- = all. Returns purchase, worker, … by worker, oldest first.
local limit = tonumber(ARGV[1])
local workers = { unpack(ARGV, 2) }
-- Each worker has an open journal, or soon goes.
local last = limit and limit - 1 or -1
if #workers == 0 then
  workers = redis.call('ZRANGE', WORKERS, 0, last)
end
local names = {}
for i, worker in ipairs(workers) do
  names[i] = open_key(worker)
end
need(names)
local found = {}
for i, worker in ipairs(workers) do
  for _, purchase in ipairs(redis.call('ZRANGE', names[i], 0, last)) do
    if limit and #found >= 2 * limit then
      return found
    end
    found[#found + 1] = purchase
    found[#found + 1] = worker
  end
end
return found
