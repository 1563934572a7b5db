-- KEYS: schema. ARGV: the schema version, '1' if an empty server may become a store.
-- Returns the server's schema version afterwards; nil if there is none. Writes nothing else, so a
-- full server can be asked too.
local found = redis.call('GET', KEYS[1])
if not found and ARGV[2] == '1' then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return found
