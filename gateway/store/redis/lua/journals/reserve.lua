-- KEYS: the journal, the worker's open purchases and what they reserve, the workers, the counters, and of
-- the account its queue, with the tickets of all keys if others wait.
-- ARGV: purchase, worker, payload, the calendar, the place at an account as JSON ('' = none), the
-- consumptions as JSON, the subjects and amounts as JSON, for each consumption whether its limit is a
-- shadow ('1' or '0'), and a plan with what belongs to it ('' = none).
-- Returns the index of the denied consumption (-1 = none), the states, now, the time of the
-- reservation, the indexes of the consumptions that exceed a shadow limit, and the turn.
local purchase, worker, payload = ARGV[1], ARGV[2], ARGV[3]
local scopes = cjson.decode(ARGV[7])
local key = journal_key(purchase)
if not choose_windows(ARGV[4]) then
  return wrong_calendar()
end
local arguments = unpack_consumptions(ARGV[6], ARGV[8])
local consumptions = read_consumptions(arguments, 1)
if redis.call('EXISTS', key) == 1 then
  local at, state = unpack(redis.call('HMGET', key, 'at', 'state'))
  local turn = state == 'queued' and { state, 0, 0 } or NO_TURN
  return { -1, states(consumptions), now, tonumber(at or now), {}, turn }
end

local denied, exceeded = consume(consumptions, true)
if denied then
  end_future_buckets(consumptions)
  return { denied - 1, states(read_consumptions(arguments, 1), denied), now, now, {}, NO_TURN }
end
local place = read_place(ARGV[5])
local turn = decide_turn(place)
if turn[1] == 'refused' then
  return { -1, states(read_consumptions(arguments, 1)), now, now, {}, turn }
end

local packed = pack_consumptions(consumptions)
scopes.windows = pack_current_windows()
local windows, amounts = reserved_amounts(packed, scopes)
change_windows(windows, amounts, function(of_window)
  local changes = {}
  for unit, amount in pairs(of_window) do
    if tonumber(amount) ~= 0 then
      changes[#changes + 1] = unit .. ':reserved'
      changes[#changes + 1] = amount
    end
  end
  return changes
end)
write_buckets(consumptions)
local fields = write_turn(turn, place, purchase, worker, packed)
write_windows()
local at, held, held_windows = digits(now), cjson.encode(packed), cjson.encode(scopes)
redis.write('HSET', key, 'worker', worker, 'payload', payload, 'at', at,
  'consumptions', held, 'windows', held_windows, unpack(fields))
write_reserved(worker, purchase, at, held, held_windows)
redis.write('ZADD', open_key(worker), at, purchase)
redis.write('ZADD', WORKERS, at, worker)
return { -1, states(consumptions), now, now, exceeded, turn }
