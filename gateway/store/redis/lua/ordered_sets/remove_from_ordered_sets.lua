-- KEYS: ordered sets. ARGV: the member.
for _, set in ipairs(KEYS) do
  redis.write('ZREM', set, ARGV[1])
end
return 0
