-- KEYS: layout. ARGV: the version wanted, '1' if it may be written.
-- Stamps a server that is empty, or whose older layout only lacks some keys. Answers the stamp as it
-- is then, nil if there is none. Writes nothing else, so that also a full server can be asked.
local found = redis.call('GET', KEYS[1])
local version = found and (string.match(found, '^%d+$') and tonumber(found) or math.huge) or 0
if ARGV[2] == '1' and version < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return found
