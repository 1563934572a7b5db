-- KEYS: entry, claims. ARGV: flight, lease, the slots.
-- Answers now, the held slots with their values, mine, and the others' slots with their flights.
local flight, lease = ARGV[1], tonumber(ARGV[2])
local entry, claims = read_entry(), read_claims()
local held, mine, others, wanted = {}, {}, {}, {}

for i = 3, #ARGV do
  local slot = tonumber(ARGV[i])
  local claim = claims[slot]
  if is_live(entry[slot]) then
    table.insert(held, slot)
    table.insert(held, entry[slot].value)
  elseif is_live(claim) and claim.flight ~= flight then
    table.insert(others, slot)
    table.insert(others, claim.flight)
  else
    table.insert(mine, slot)
    if not is_live(claim) then
      table.insert(wanted, slot)
    end
  end
end

for _, slot in ipairs(wanted) do
  redis.call('HSET', KEYS[2], slot, digits(now + lease) .. ' ' .. flight)
end
if #wanted > 0 then
  live_until(KEYS[2], now + lease)
end
return { now, held, mine, others }
