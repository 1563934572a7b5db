-- KEYS: books. ARGV: purchase, worker, payload, the takes.
-- Answers the index of the refused take (-1 = none), the states, and now.
local FIRST_TAKE = 4
local purchase, worker, payload = ARGV[1], ARGV[2], ARGV[3]
local key = journal_key(purchase)
local takes = read_takes(ARGV, FIRST_TAKE)
if redis.call('EXISTS', key) == 1 then
  return { -1, states(takes), now }
end

local refused = draw(takes, true)
if refused then
  return { refused - 1, states(read_takes(ARGV, FIRST_TAKE), refused), now }
end

write_buckets(takes)
write_windows(takes)
redis.call('HSET', key, 'state', 'reserved', 'worker', worker, 'payload', payload,
  'takes', pack_reserved(takes))
redis.call('ZADD', open_key(worker), digits(now), purchase)
redis.call('ZADD', WORKERS, digits(now), worker)
return { -1, states(takes), now }
