-- KEYS: the checkpoint, the period. ARGV: the period, the cursor, the limit.
-- Returns the checkpoint, the next cursor, and row, slots, ….
local reply = redis.call('HSCAN', totals_key(ARGV[1]), ARGV[2], 'COUNT', ARGV[3])
local rows = {}
for i = 1, #reply[2], 2 do
  if string.sub(reply[2][i], 1, 1) ~= '#' then
    table.insert(rows, reply[2][i])
    table.insert(rows, reply[2][i + 1])
  end
end
return { checkpoint(), reply[1], rows }
