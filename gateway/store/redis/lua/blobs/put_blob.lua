-- KEYS: blob. ARGV: the bytes, time to live in milliseconds. An existing blob only gets more time.
-- PEXPIRE comes first because Redis does not refuse a script of a full server after a write that
-- needs no memory. The bytes on their way here may themselves fill the server, and the small
-- commands after them in the batch must not be executed without them.
redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
return 0
