-- KEYS: the windows, the running totals, the workers and their open purchases, the journals, the ledger.
-- ARGV: the most journals to read, the number of windows, their subjects and names, then
-- the fields of running totals. All of it is read at one moment.
-- Returns now, milliseconds and count of the last record, the same of the last charged and of the last
-- free record that was removed, the windows (unit and kind, amount, …), the running totals, and of each
-- open journal purchase, worker, state, time, consumptions and windows; '' if there are too many.
local most, windows_count = tonumber(ARGV[1]), tonumber(ARGV[2])
local WINDOW = BOOKS .. 'window:'
local FIRST_TOTAL = 3 + 2 * windows_count

local function read_journals()
  local workers = redis.call('ZRANGE', WORKERS, 0, -1)
  local names = {}
  for i, worker in ipairs(workers) do
    names[i] = open_key(worker)
  end
  need(names)
  local open, journals = {}, {}
  for i, worker in ipairs(workers) do
    for _, purchase in ipairs(redis.call('ZRANGE', names[i], 0, most)) do
      open[#open + 1] = { purchase, worker }
      journals[#journals + 1] = journal_key(purchase)
    end
  end
  if #open > most then
    return ''
  end
  need(journals)
  local found = {}
  for i, key in ipairs(journals) do
    local fields = redis.call('HMGET', key, 'state', 'at', 'consumptions', 'windows')
    for _, value in ipairs({ open[i][1], open[i][2], unpack(fields, 1, 4) }) do
      table.insert(found, value)
    end
  end
  return found
end

local windows = {}
for i = 3, FIRST_TOTAL - 1, 2 do
  local key = WINDOW .. ARGV[i] .. ':' .. ARGV[i + 1]
  table.insert(windows, redis.call('HGETALL', key))
end
local totals = {}
for i = FIRST_TOTAL, #ARGV do
  table.insert(totals, tonumber(redis.call('HGET', RUNNING_TOTALS, ARGV[i]) or 0))
end
local removed = {}
for i, class in ipairs(CLASSES) do
  removed[i] = { parse_id(redis.call('HGET', LEDGER, removed_field(class)) or '0-0') }
end
return { now, { read_ledger_end() }, removed[1], removed[2], windows, totals, read_journals() }
