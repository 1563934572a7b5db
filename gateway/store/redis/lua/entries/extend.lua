-- KEYS: entry, claims. ARGV: flight, lease. Answers 1, or 0 if the flight has no live claim.
local flight, lease = ARGV[1], tonumber(ARGV[2])
local alive = {}

for slot, claim in pairs(read_claims()) do
  if claim.flight == flight and is_live(claim) then
    table.insert(alive, slot)
  end
end

for _, slot in ipairs(alive) do
  redis.call('HSET', KEYS[2], slot, digits(now + lease) .. ' ' .. flight)
end
if #alive > 0 then
  live_until(KEYS[2], now + lease)
end
return #alive > 0 and 1 or 0
