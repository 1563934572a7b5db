-- The ledger: for each day a stream of charged and one of free records. The ids of both come from
-- one sequence that grows even if the clock steps back, so they are read as one ledger. A record's
-- day is that of its id.

-- hash: the last id as `ms` and `count`; `free`, the bytes of all free records; `free:<day>`; `removed`
-- and `removed:free`, the ids of the last charged and of the last free record that was removed
local LEDGER = BOOKS .. 'ledger'
local MAX_COUNT = 999999 -- a position has six digits for it
local RECORD_OVERHEAD = 64 -- commands.RECORD_OVERHEAD_BYTES
local CLASSES = { 'charged', 'free' }

local MAX_ASKED_DAYS = 40 -- whose streams a script asks for at a time

local function ledger_key(class, day)
  return BOOKS .. 'ledger:' .. class .. ':' .. day
end

-- Sorted set of the days that have a stream, all scores 0.
local function days_key(class)
  return BOOKS .. 'ledger-days:' .. class
end

local function removed_field(class)
  return class == 'charged' and 'removed' or 'removed:' .. class
end

local function day_of_ms(ms)
  return (day_of(ms * 1000))
end

-- A stream's id as two numbers.
local function parse_id(id)
  local ms, count = id:match('^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(count)
end

local function is_later(ms, count, other_ms, other_count)
  return ms > other_ms or (ms == other_ms and count > other_count)
end

-- Adds day, id and record of a day's charged and free records, in one order, until `found` has `limit`.
local function add_merged(found, day, charged, free, limit, is_newest_first)
  local c, f, n, stop = 1, 1, #found, 3 * limit
  local next_charged, next_free = charged[1], free[1]
  while n < stop and (next_charged or next_free) do
    local takes_charged = next_charged
    if next_charged and next_free then
      local ms, count = parse_id(next_charged[1])
      takes_charged = is_later(ms, count, parse_id(next_free[1])) == is_newest_first
    end
    local item
    if takes_charged then
      item, c = next_charged, c + 1
      next_charged = charged[c]
    else
      item, f = next_free, f + 1
      next_free = free[f]
    end
    found[n + 1], found[n + 2], found[n + 3] = day, item[1], item[2][2]
    n = n + 3
  end
end

local function read_ledger_end()
  local found = redis.call('HMGET', LEDGER, 'ms', 'count')
  if found[1] then
    return tonumber(found[1]), tonumber(found[2])
  end
  -- The first append, or the hash was evicted: a stream refuses an id that does not grow.
  local ms, count, streams = 0, 0, {}
  for _, class in ipairs(CLASSES) do
    local day = redis.call('ZREVRANGE', days_key(class), 0, 0)[1]
    streams[#streams + 1] = day and ledger_key(class, day)
  end
  need(streams)
  for _, stream in ipairs(streams) do
    local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    if last then
      local last_ms, last_count = parse_id(last[1])
      if is_later(last_ms, last_count, ms, count) then
        ms, count = last_ms, last_count
      end
    end
  end
  return ms, count
end

-- Where `append_records` begins. Asks for the keys that so many records need, before anything is
-- written.
local function prepare_append(records_count, is_charged)
  local ms, count = read_ledger_end()
  local first_ms = math.max(ms, math.floor(now / 1000))
  local last_ms = first_ms + math.ceil(records_count / MAX_COUNT) + 1
  local class, first_day = is_charged and 'charged' or 'free', day_of_ms(first_ms)
  local names = { ledger_key(class, first_day), days_key(class) }
  if last_ms % 86400000 < last_ms - first_ms then -- else they are of one day
    names[3] = ledger_key(class, day_of_ms(last_ms))
  end
  need(names)
  return { ms = ms, count = count }
end

-- Appends records `first` to `last` of a list, by default all. They are of one class. The first write
-- needs memory, so a full server refuses all of them. `prepared` is what `prepare_append` returned. A
-- script that has already written must pass it, because this function cannot ask for keys then.
local function append_records(records, is_charged, prepared, first, last)
  first, last = first or 1, last or #records
  if first > last then
    return
  end
  local class = is_charged and 'charged' or 'free'
  prepared = prepared or prepare_append(last - first + 1, is_charged)
  local ms, count = prepared.ms, prepared.count
  local now_ms, bytes = math.floor(now / 1000), {}
  -- Only what each record needs: Redis spends most of its time for a hit in this loop.
  local stream, prefix, day, stream_ms
  for i = first, last do
    count = count + 1
    if now_ms > ms then
      ms, count = now_ms, 0
    elseif count > MAX_COUNT then
      ms, count = ms + 1, 0
    end
    if ms ~= stream_ms then
      stream_ms, day, prefix = ms, day_of_ms(ms), digits(ms) .. '-'
      stream = ledger_key(class, day)
    end
    local record = records[i]
    redis.write('XADD', stream, prefix .. count, 'record', record)
    bytes[day] = (bytes[day] or 0) + #record + RECORD_OVERHEAD
  end
  redis.write('HSET', LEDGER, 'ms', digits(ms), 'count', digits(count))
  for day, added in pairs(bytes) do
    redis.write('ZADD', days_key(class), 'NX', 0, day)
    if not is_charged then
      redis.write('HINCRBY', LEDGER, 'free', added)
      redis.write('HINCRBY', LEDGER, 'free:' .. day, added)
    end
  end
end
