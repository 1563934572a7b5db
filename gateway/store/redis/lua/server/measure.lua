-- Returns the server's INFO about memory. Works in a full server too.
return redis.call('INFO', 'memory')
