-- Keys of the books. Their prefix ends with the hash tag {books}, so all of them are in one hash slot.

-- A script without KEYS touches none of them.
local BOOKS = string.match(KEYS[1] or '', '^.-{books}:') or ''
local WORKERS = BOOKS .. 'workers' -- sorted set: worker → its last heartbeat
local RUNNING_TOTALS = BOOKS .. 'running-totals' -- hash: <name>:<kind> → micro-dollars;
-- <name>:first_charge → microseconds, when `charged` first grew

local function journal_key(purchase)
  return BOOKS .. 'journal:' .. purchase
end

local function open_key(worker)
  return BOOKS .. 'open:' .. worker
end

-- A hash: what each of the worker's open purchases has reserved, so that all of them can be read without
-- the keys of their journals. A field is the time of the reservation, the consumptions and the windows.
-- Gateways of earlier versions do not write it.
local function reserved_key(worker)
  return BOOKS .. 'reserved:' .. worker
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
    local total = redis.write('HINCRBY', RUNNING_TOTALS, name .. ':' .. kind, digits(usd_micros))
    if kind == 'charged' and total == usd_micros then
      redis.write('HSET', RUNNING_TOTALS, name .. ':first_charge', digits(now))
    end
  end
end
