-- Returns the server's INFO about memory, '' if an ACL forbids it. Works in a full server too.
local memory = redis.pcall('INFO', 'memory')
return type(memory) == 'string' and memory or ''
