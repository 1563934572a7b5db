-- KEYS: entry. ARGV: slot and the id of the image meant, ….
local entry = read_entry()
for i = 1, #ARGV, 2 do
  local held = entry[tonumber(ARGV[i])]
  if held and held.image == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return 0
