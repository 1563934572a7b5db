-- Executes a write with any number of arguments, from the one at `first` on, in several calls: Lua unpacks
-- fewer than 8,000 arguments at a time. An error in the middle of a script would leave its earlier writes.
local function write_many(command, key, arguments, first)
  local PAGE = 1000
  for from = first, #arguments, PAGE do
    redis.write(command, key, unpack(arguments, from, math.min(from + PAGE - 1, #arguments)))
  end
end
