-- KEYS: ordered sets. ARGV: the member.
for _, set in ipairs(KEYS) do
  redis.call('ZREM', set, ARGV[1])
end
return 0
