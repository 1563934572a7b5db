-- KEYS: books. ARGV: the most journals to read, the number of windows, their subjects and names, then
-- the fields of running totals. All of it is read at one moment.
-- Returns now, milliseconds and count of the last record, the same of the last charged and of the last
-- free record that was removed, the windows (unit and kind, amount, …), the running totals, and of each
-- open journal purchase, worker, state, time, consumptions and windows; '' if there are too many.
local most, windows_count = tonumber(ARGV[1]), tonumber(ARGV[2])
local FIRST_TOTAL = 3 + 2 * windows_count

local function read_journals()
  local found = {}
  for _, worker in ipairs(redis.call('ZRANGE', WORKERS, 0, -1)) do
    for _, purchase in ipairs(redis.call('ZRANGE', open_key(worker), 0, most)) do
      if #found >= 6 * most then
        return ''
      end
      local fields =
        redis.call('HMGET', journal_key(purchase), 'state', 'at', 'consumptions', 'windows')
      for _, value in ipairs({ purchase, worker, unpack(fields, 1, 4) }) do
        table.insert(found, value)
      end
    end
  end
  return found
end

local windows = {}
for i = 3, FIRST_TOTAL - 1, 2 do
  local key = BOOKS .. 'window:' .. ARGV[i] .. ':' .. ARGV[i + 1]
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
