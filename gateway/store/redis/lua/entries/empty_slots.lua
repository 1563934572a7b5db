-- KEYS: entry, leases. ARGV: slot and image id, ….
local entry = read_entry()
for i = 1, #ARGV, 2 do
  local stored = entry[ARGV[i]]
  if stored and stored.image == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return 0
