-- KEYS: entry, claims. ARGV: flight, lease, how many slots, the slots, images that are ignored.
-- Answers now, the held slots with their values, mine, and the others' slots with their flights.
local FIRST_SLOT = 4
local flight, lease = ARGV[1], tonumber(ARGV[2])
local last_slot = FIRST_SLOT + tonumber(ARGV[3]) - 1
local entry, claims = read_entry(), read_claims()
local held, mine, others, wanted = {}, {}, {}, {}

local ignored = {}
for i = last_slot + 1, #ARGV do
  ignored[ARGV[i]] = true
end

for i = FIRST_SLOT, last_slot do
  local slot = tonumber(ARGV[i])
  local claim = claims[slot]
  if is_live(entry[slot]) and not ignored[entry[slot].image] then
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
