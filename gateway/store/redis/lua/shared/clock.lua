-- The server's clock in exact integers.

local SECOND = 1000000 -- times and durations are whole microseconds, exact below 2^53
local now = redis.call('TIME')
now = tonumber(now[1]) * SECOND + tonumber(now[2])

-- A whole number as text. tostring() would write 1e+15 from fifteen digits on.
local function digits(number)
  return string.format('%.0f', number)
end

local function milliseconds(microseconds)
  return digits(math.ceil(microseconds / 1000))
end
