-- Answers the clock, and what the server says of its memory and of what it writes to disk. INFO and
-- not CONFIG: the latter is closed to scripts, and in many hosted servers to everybody.
return { now, redis.call('INFO', 'memory') .. redis.call('INFO', 'persistence') }
