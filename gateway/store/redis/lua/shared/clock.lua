-- The server's clock in exact integers.

local SECOND = 1000000 -- times and durations are whole microseconds, exact below 2^53
local time = redis.call('TIME')
local now = time[1] * SECOND + time[2]

-- A whole number as text. tostring() would write 1e+15 from fifteen digits on.
local function digits(number)
  return string.format('%.0f', number)
end

-- The same as digits(now), in a third of the time.
local function now_digits()
  return time[1] .. string.sub('00000' .. time[2], -6)
end

local function milliseconds(microseconds)
  return digits(math.ceil(microseconds / 1000))
end
