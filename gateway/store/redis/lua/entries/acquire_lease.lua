-- KEYS: entry, leases. ARGV: flight, lease, how many slots, the slots, ids of images to ignore.
-- Returns now, the cached slots with their values, the acquired slots, and the slots that other
-- flights lease, with those flights.
local FIRST_SLOT = 4
local flight, lease_time = ARGV[1], tonumber(ARGV[2])
local last_slot = FIRST_SLOT + tonumber(ARGV[3]) - 1
local entry, leases = read_entry(), read_leases()
local cached, acquired, leased, free = {}, {}, {}, {}

local is_ignored = {}
for i = last_slot + 1, #ARGV do
  is_ignored[ARGV[i]] = true
end

for i = FIRST_SLOT, last_slot do
  local slot = ARGV[i]
  local stored, lease = entry[slot], leases[slot]
  if is_valid(stored) and not is_ignored[stored.image] then
    cached[#cached + 1] = slot
    cached[#cached + 1] = stored.value
  elseif is_leased_by_other(lease, flight) then
    leased[#leased + 1] = slot
    leased[#leased + 1] = lease.flight
  else
    acquired[#acquired + 1] = slot
    if not is_valid(lease) then
      free[#free + 1] = slot
    end
  end
end

end_future_leases(leases)
lease_slots(free, flight, lease_time, next(leases) == nil)
return { now, cached, acquired, leased }
