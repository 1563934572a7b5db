-- KEYS: set. ARGV: time to live in milliseconds, the members.
for i = 2, #ARGV do
  redis.call('SADD', KEYS[1], ARGV[i])
end
if redis.call('PEXPIRE', KEYS[1], ARGV[1], 'NX') == 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1], 'GT') -- which would not set a first expiry
end
return 0
