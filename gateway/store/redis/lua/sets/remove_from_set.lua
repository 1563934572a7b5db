-- KEYS: set. ARGV: the members.
for _, member in ipairs(ARGV) do
  redis.call('SREM', KEYS[1], member)
end
return 0
