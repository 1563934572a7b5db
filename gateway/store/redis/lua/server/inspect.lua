-- Returns the time, and the server's INFO about memory and persistence. Not CONFIG GET: scripts may
-- not call it, and many hosted servers forbid it altogether.
return { now, redis.call('INFO', 'memory') .. redis.call('INFO', 'persistence') }
