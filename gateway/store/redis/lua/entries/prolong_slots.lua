-- KEYS: entry, leases. ARGV: time to live, stale-if-error window, then slot and image id, ….
local expires, stale_if_error = now + tonumber(ARGV[1]), tonumber(ARGV[2])
local entry = read_entry()
for i = 3, #ARGV, 2 do
  local stored = entry[ARGV[i]]
  if stored and stored.image == ARGV[i + 1] and stored.expires < expires then
    local rest = string.sub(stored.value, (string.find(stored.value, ' ', 1, true)))
    redis.call('HSET', KEYS[1], ARGV[i], digits(expires) .. rest)
    expire_at_least(KEYS[1], milliseconds(expires + stale_if_error))
  end
end
return 0
