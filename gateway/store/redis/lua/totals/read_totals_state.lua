-- KEYS: the checkpoint, the full groups of each period.
-- ARGV: the periods.
-- Returns the checkpoint, and the full groups of each period.
local found = { checkpoint() }
for _, period in ipairs(ARGV) do
  table.insert(found, redis.call('SMEMBERS', full_groups_key(period)))
end
return found
