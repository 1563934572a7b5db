-- KEYS: books. ARGV: purchase, worker, payload, the consumptions.
-- Returns the index of the denied consumption (-1 = none), the states, and now.
local FIRST = 4
local purchase, worker, payload = ARGV[1], ARGV[2], ARGV[3]
local key = journal_key(purchase)
local consumptions = read_consumptions(ARGV, FIRST)
if redis.call('EXISTS', key) == 1 then
  return { -1, states(consumptions), now }
end

local denied = consume(consumptions, true)
if denied then
  end_future_buckets(consumptions)
  return { denied - 1, states(read_consumptions(ARGV, FIRST), denied), now }
end

write_buckets(consumptions)
write_windows(consumptions)
redis.call('HSET', key, 'state', 'reserved', 'worker', worker, 'payload', payload,
  'consumptions', pack_reserved(consumptions))
redis.call('ZADD', open_key(worker), digits(now), purchase)
redis.call('ZADD', WORKERS, digits(now), worker)
return { -1, states(consumptions), now }
