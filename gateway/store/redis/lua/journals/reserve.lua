-- KEYS: books. ARGV: purchase, worker, payload, the calendar, the subjects and amounts as JSON, the
-- consumptions.
-- Returns the index of the denied consumption (-1 = none), the states, now, the time of the
-- reservation, and the indexes of the consumptions that exceed a shadow limit.
local FIRST = 6
local purchase, worker, payload = ARGV[1], ARGV[2], ARGV[3]
local scopes = cjson.decode(ARGV[5])
local key = journal_key(purchase)
if not choose_windows(ARGV[4]) then
  return wrong_calendar()
end
local consumptions = read_consumptions(ARGV, FIRST)
if redis.call('EXISTS', key) == 1 then
  return { -1, states(consumptions), now, tonumber(redis.call('HGET', key, 'at') or now), {} }
end

local denied, exceeded = consume(consumptions, true)
if denied then
  end_future_buckets(consumptions)
  return { denied - 1, states(read_consumptions(ARGV, FIRST), denied), now, now, {} }
end

local packed = pack_consumptions(consumptions)
scopes.windows = pack_current_windows()
for _, counter in ipairs(reserved_counters(packed, scopes)) do
  add_to_window(counter.window, counter.unit, 'reserved', counter.amount)
end
write_buckets(consumptions)
write_windows()
redis.call('HSET', key, 'state', 'reserved', 'worker', worker, 'payload', payload,
  'at', digits(now), 'consumptions', cjson.encode(packed), 'windows', cjson.encode(scopes))
redis.call('ZADD', open_key(worker), digits(now), purchase)
redis.call('ZADD', WORKERS, digits(now), worker)
return { -1, states(consumptions), now, now, exceeded }
