-- KEYS: entry, leases. ARGV: flight, lease.
-- Returns 1, or 0 if all leases of the flight have expired.
local flight = ARGV[1]
local valid = {}

for slot, lease in pairs(read_leases()) do
  if lease.flight == flight and is_valid(lease) then
    valid[#valid + 1] = slot
  end
end

lease_slots(valid, flight, tonumber(ARGV[2]))
return valid[1] and 1 or 0
