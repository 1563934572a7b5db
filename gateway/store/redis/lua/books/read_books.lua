-- KEYS: the windows, the running totals, the workers, their open purchases and what they reserve, the
-- journals of those that a gateway of an earlier version reserved, the ledger.
-- ARGV: the most purchases to read, the number of windows, their subjects and names, then
-- the fields of running totals. All of it is read at one moment.
-- Returns now, milliseconds and count of the last record, the same of the last charged and of the last
-- free record that was removed, the windows (unit and kind, amount, …), the running totals, and of each
-- open purchase its name, worker, time, consumptions and windows; '' if there are too many.
local most, windows_count = tonumber(ARGV[1]), tonumber(ARGV[2])
local WINDOW = BOOKS .. 'window:'
local PAGE = 1000 -- fields of one command
local FIRST_TOTAL = 3 + 2 * windows_count

-- Adds what a worker's open purchases have reserved. Those that a gateway of an earlier version has
-- reserved or moved have no such field; they go to `lacking`.
local function add_reserved(found, lacking, worker, open)
  for first = 1, #open, 2 * PAGE do
    local purchases = {}
    for i = first, math.min(first + 2 * PAGE, #open) - 1, 2 do
      purchases[#purchases + 1] = open[i]
    end
    local fields = redis.call('HMGET', reserved_key(worker), unpack(purchases))
    for i, purchase in ipairs(purchases) do
      local at, consumptions, scopes = (fields[i] or ''):match('^(%d+)\n(.-)\n(.*)$')
      local row = { purchase, worker, at, consumptions, scopes }
      if tonumber(at) ~= tonumber(open[first + 2 * i - 1]) then
        lacking[#lacking + 1] = row
      end
      found[#found + 1] = row
    end
  end
end

local function read_purchases()
  local workers = redis.call('ZRANGE', WORKERS, 0, -1)
  local names = {}
  for i, worker in ipairs(workers) do
    names[2 * i - 1], names[2 * i] = open_key(worker), reserved_key(worker)
  end
  need(names)
  local found, lacking, journals = {}, {}, {}
  for _, worker in ipairs(workers) do
    local open = redis.call('ZRANGE', open_key(worker), 0, most, 'WITHSCORES')
    if #found + #open / 2 > most then
      return ''
    end
    add_reserved(found, lacking, worker, open)
  end
  for i, row in ipairs(lacking) do
    journals[i] = journal_key(row[1])
  end
  need(journals)
  for i, row in ipairs(lacking) do
    row[3], row[4], row[5] = unpack(redis.call('HMGET', journals[i], 'at', 'consumptions', 'windows'))
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
return { now, { read_ledger_end() }, removed[1], removed[2], windows, totals, read_purchases() }
