-- KEYS: the writers, the ledger, the running totals, the refusals.
-- ARGV: writer, the number of its append, what its images had cost as JSON (running total → micro-
-- dollars), how many records, the records, then the refusals as key, reason, count, record, other
-- record, ….
-- Returns 1; 0 for a number above 1 of a writer that is not known.
local WRITERS = BOOKS .. 'writers' -- sorted set: writer → the time of its last append
local NUMBERS = BOOKS .. 'writer-numbers' -- hash: writer → the number of its last append
local WRITER_SECONDS = 86400 -- commands.WRITER_SECONDS
local MAX_FORGOTTEN = 10

local writer, number, records_count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local last = redis.call('HGET', NUMBERS, writer)
if last and number <= tonumber(last) then
  return 1
end
if not last and number > 1 then
  return 0
end

append_records(ARGV, false, nil, 5, 4 + records_count)
for name, usd_micros in pairs(cjson.decode(ARGV[3])) do
  add_to_total(name, 'saved', usd_micros)
end
for i = 5 + records_count, #ARGV, 5 do
  count_refusals(unpack(ARGV, i, i + 4))
end
redis.write('HSET', NUMBERS, writer, digits(number))
redis.write('ZADD', WRITERS, digits(now), writer)
if number == 1 then
  -- Each new writer forgets more than one old one, so they do not accumulate.
  local before = digits(now - WRITER_SECONDS * SECOND)
  local old = redis.call('ZRANGEBYSCORE', WRITERS, '-inf', before, 'LIMIT', 0, MAX_FORGOTTEN)
  if #old > 0 then
    redis.write('ZREM', WRITERS, unpack(old))
    redis.write('HDEL', NUMBERS, unpack(old))
  end
end
return 1
