-- KEYS: a key that does not exist. ARGV: a channel, then the names of commands.
-- Calls each command in a way that leaves no change. Returns the name and the error of
-- each that the user may not use, or that the server does not have. Calls no other command, so that
-- it runs with any rights.
local function is_refused(reply)
  local text = type(reply) == 'table' and reply.err
  return text and (string.find(text, 'NOPERM', 1, true) or string.find(text, 'ACL failure', 1, true)
    or string.find(text, 'The user executing the script', 1, true)
    -- The first is Redis' text, the second Valkey's.
    or string.find(text, 'Unknown Redis command', 1, true)
    or string.find(text, 'Unknown command', 1, true)) and text
end

local missing = {}
for i = 2, #ARGV do
  local name, arguments, reply = ARGV[i], {}, nil
  if name == 'PUBLISH' then
    reply = redis.pcall(name, ARGV[1], '')
  else
    repeat -- with as many arguments as the command takes
      reply = redis.pcall(name, unpack(arguments))
      arguments[#arguments + 1] = KEYS[1]
      local is_short = type(reply) == 'table' and reply.err
        and string.find(reply.err, 'Wrong number of args', 1, true)
    until not is_short or #arguments > 6
  end
  local refusal = is_refused(reply)
  if refusal then
    missing[#missing + 1] = { name, refusal }
  end
  -- Without the right to delete, nothing is written.
  if name == 'DEL' and refusal then
    return missing
  end
  redis.pcall('DEL', KEYS[1])
end
return missing
