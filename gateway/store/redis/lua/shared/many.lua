-- Writes with any number of arguments, from the one at `first` on. Lua unpacks less than 8,000 at a time,
-- and an error after other writes would leave them alone.
local function write_many(command, key, arguments, first)
  local PAGE = 1000
  for from = first, #arguments, PAGE do
    redis.write(command, key, unpack(arguments, from, math.min(from + PAGE - 1, #arguments)))
  end
end
