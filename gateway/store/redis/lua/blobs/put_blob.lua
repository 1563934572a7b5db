-- KEYS: blob. ARGV: the bytes, lifetime in milliseconds. What is there already is only prolonged.
-- A full server lets a script go on whose first write takes no memory. It must: the bytes on their
-- way here may be what fills it, and the verbs behind them, which are small, would be done without.
redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
return 0
