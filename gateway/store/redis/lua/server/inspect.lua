-- Returns the time, and the server's INFO about memory, persistence and replicas. Not CONFIG GET: scripts may
-- not call it, and many hosted servers forbid it altogether. An ACL may forbid INFO too: then its
-- error is the third value.
local memory, persistence = redis.pcall('INFO', 'memory'), redis.pcall('INFO', 'persistence')
if type(memory) == 'table' then
  return { now, '', memory.err }
end
return { now, memory .. persistence .. redis.pcall('INFO', 'replication'), '' }
