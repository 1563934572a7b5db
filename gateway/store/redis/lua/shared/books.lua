-- Keys of the books: KEYS[1] is their prefix. It contains the hash tag {books}, so every key that a
-- script builds from it is in the hash slot of KEYS[1].

local BOOKS = KEYS[1]
local WORKERS = BOOKS .. 'workers' -- sorted set: worker → its last heartbeat
local RUNNING_TOTALS = BOOKS .. 'running-totals' -- hash: <name>:<kind> → micro-dollars
local LEDGER_DAYS = BOOKS .. 'ledger-days' -- sorted set of yyyy-mm-dd, all scores 0

local function journal_key(purchase)
  return BOOKS .. 'journal:' .. purchase
end

local function open_key(worker)
  return BOOKS .. 'open:' .. worker
end

local function ledger_key(day)
  return BOOKS .. 'ledger:' .. day
end

-- All fields of a hash as a table; nil if there is no such hash.
local function read_hash(key)
  local fields = redis.call('HGETALL', key)
  if #fields == 0 then
    return nil
  end
  local found = {}
  for i = 1, #fields, 2 do
    found[fields[i]] = fields[i + 1]
  end
  return found
end

local function add_to_total(name, kind, usd_micros)
  if usd_micros ~= 0 then
    redis.call('HINCRBY', RUNNING_TOTALS, name .. ':' .. kind, digits(usd_micros))
  end
end

-- The day to append to. If the clock steps back over midnight, records continue under the later
-- day, because a client that reads the ledger never returns to an earlier one.
local function ledger_day()
  local last = redis.call('ZREVRANGE', LEDGER_DAYS, 0, 0)[1]
  local today = day_of(now)
  return last and last > today and last or today
end

local function append_record(day, record)
  redis.call('XADD', ledger_key(day), '*', 'record', record)
  redis.call('ZADD', LEDGER_DAYS, 'NX', 0, day)
end
