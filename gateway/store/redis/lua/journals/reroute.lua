-- KEYS as those of `reserve`, and what the old reservation holds; ARGV as those of `reserve`, and what
-- it returns; the time of the reservation is 0 if the journal is not open any more.
local FIRST = 7
local purchase, worker, payload = ARGV[1], ARGV[2], ARGV[3]
local scopes = cjson.decode(ARGV[5])
local key = journal_key(purchase)
if not choose_windows(ARGV[4]) then
  return wrong_calendar()
end
local journal = read_hash(key)
if not journal or (journal.state ~= 'queued' and journal.state ~= 'reserved') then
  return { -1, states(read_consumptions(ARGV, FIRST)), now, 0, {}, NO_TURN }
end

local old_consumptions, old_scopes =
  cjson.decode(journal.consumptions), cjson.decode(journal.windows)
add_needed = function(names)
  add_reserved_keys(names, old_consumptions, old_scopes)
  add_journal_keys(names, journal)
end
need_journal(journal)

-- In the tables only, so that a refusal changes nothing.
local released, old_amounts = reserved_amounts(old_consumptions, old_scopes)
subtract_reserved(released, old_amounts)

local consumptions = read_consumptions(ARGV, FIRST)
-- A bucket has given what the purchase needed before.
local given = {}
for _, item in ipairs(old_consumptions) do
  if item[3] == 'minute' then
    local name = item[1] .. ' ' .. item[2]
    given[name] = (given[name] or 0) + tonumber(item[5])
  end
end
for _, consumption in ipairs(consumptions) do
  local counter = consumption.counter
  if counter.period == 'minute' then
    consumption.asked = consumption.amount
    local name = counter.subject .. ' ' .. counter.unit
    local more = math.max(0, consumption.amount - (given[name] or 0))
    given[name] = math.max(0, (given[name] or 0) - consumption.amount)
    consumption.amount = more
  end
end

local denied, exceeded = consume(consumptions, true)
local place = read_place(ARGV[6])
local turn = denied and NO_TURN or decide_turn(place)
if denied or turn[1] == 'refused' then
  add_reserved(released, old_amounts)
  local list = states(read_consumptions(ARGV, FIRST), denied)
  return { denied and denied - 1 or -1, list, now, now, {}, turn }
end

leave_place(journal, purchase, place and place.opened)
write_buckets(consumptions)
for _, consumption in ipairs(consumptions) do
  consumption.amount = consumption.asked or consumption.amount
end
local packed = pack_consumptions(consumptions)
scopes.windows = pack_current_windows()
local windows, amounts = reserved_amounts(packed, scopes)
add_reserved(windows, amounts)
local fields = write_turn(turn, place, purchase, worker, packed)
write_windows()
local at, held, held_windows = digits(now), cjson.encode(packed), cjson.encode(scopes)
redis.write('HSET', key, 'worker', worker, 'payload', payload, 'at', at,
  'consumptions', held, 'windows', held_windows, unpack(fields))
write_reserved(worker, purchase, at, held, held_windows)
if journal.worker ~= worker then
  redis.write('ZREM', open_key(journal.worker), purchase)
  redis.write('HDEL', reserved_key(journal.worker), purchase)
end
redis.write('ZADD', open_key(worker), at, purchase)
redis.write('ZADD', WORKERS, at, worker)
return { -1, states(consumptions), now, now, exceeded, turn }
