-- Counters: read into tables, changed in memory, and written only if every amount fits.
--
-- A bucket's level is stored in 1/60,000,000 of a unit: then it gains exactly `maximum` of these in
-- each microsecond, and nothing is ever rounded.

local UNIT = 60000000
local MINUTE = 60 * SECOND
local BUCKET_SECONDS = 120 -- an untouched bucket is full after a minute and need not be stored
local WINDOW_GRACE = 7 * DAY -- commands.WINDOW_GRACE_SECONDS

local function read_bucket(counter)
  if not counter.maximum then
    return -- a bucket without a limit is not stored
  end
  counter.key = BOOKS .. 'bucket:' .. counter.subject .. ':' .. counter.unit
  counter.capacity = counter.maximum * UNIT
  counter.level, counter.at = counter.capacity, now
  local stored = redis.call('HMGET', counter.key, 'level', 'at')
  if not stored[1] then
    return
  end
  -- A bucket from the future, of a clock that was set back, refills from now on.
  counter.is_from_future = tonumber(stored[2]) > now
  local elapsed = math.max(0, now - tonumber(stored[2]))
  if elapsed < MINUTE then
    counter.level = math.min(counter.capacity, tonumber(stored[1]) + elapsed * counter.maximum)
  end
end

local CALENDAR = { day = day_of, month = month_of }

-- The current windows by period, computed once per script.
local current_windows = { concurrency = { name = 'concurrency' } }

local function window_of(period)
  if not current_windows[period] then
    local name, ends = CALENDAR[period](now) -- fails for an unknown period
    current_windows[period] = { name = period .. ':' .. name, ends = ends }
  end
  return current_windows[period]
end

local function read_window(counter)
  local window = window_of(counter.period)
  counter.window, counter.ends = window.name, window.ends
  counter.key = BOOKS .. 'window:' .. counter.subject .. ':' .. counter.window
  local stored = redis.call('HMGET', counter.key, counter.unit .. ':spent',
    counter.unit .. ':reserved')
  counter.spent = tonumber(stored[1] or 0)
  counter.reserved = tonumber(stored[2] or 0)
end

local function read_counter(subject, unit, period, maximum)
  local counter = { subject = subject, unit = unit, period = period, maximum = maximum }
  if period == 'minute' then
    read_bucket(counter)
  else
    read_window(counter)
  end
  return counter
end

-- The consumptions from arguments[first] on: subject, unit, period, maximum ('' = none) and amount
-- of each. Consumptions of the same counter share its table.
local function read_consumptions(arguments, first)
  local consumptions, counters = {}, {}
  for i = first, #arguments, 5 do
    local subject, unit, period = arguments[i], arguments[i + 1], arguments[i + 2]
    local name = period .. ' ' .. unit .. ' ' .. subject
    counters[name] = counters[name]
      or read_counter(subject, unit, period, tonumber(arguments[i + 3]))
    table.insert(consumptions, { counter = counters[name], amount = tonumber(arguments[i + 4]) })
  end
  return consumptions
end

local function fits(counter, amount)
  if amount == 0 or not counter.maximum then
    return true
  end
  if counter.period == 'minute' then
    return amount * UNIT <= counter.level
  end
  return counter.spent + counter.reserved + amount <= counter.maximum
end

-- Consumes from the buckets, and reserves in the windows if `reserves`; in the tables only.
-- Returns the number of the first consumption that does not fit.
local function consume(consumptions, reserves)
  for number, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    if not fits(counter, consumption.amount) then
      return number
    end
    if counter.period == 'minute' then
      counter.level = counter.maximum and counter.level - consumption.amount * UNIT
    elseif reserves then
      counter.reserved = counter.reserved + consumption.amount
    end
  end
end

local function write_buckets(consumptions)
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    if counter.period == 'minute' and counter.maximum and consumption.amount > 0 then
      redis.call('HSET', counter.key, 'level', digits(counter.level), 'at', digits(counter.at))
      redis.call('EXPIRE', counter.key, BUCKET_SECONDS)
    end
  end
end

-- For a denied request, which takes nothing: the bucket would stay in the future.
local function end_future_buckets(consumptions)
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    if counter.is_from_future then
      redis.call('HSET', counter.key, 'at', digits(now))
      redis.call('EXPIRE', counter.key, BUCKET_SECONDS)
    end
  end
end

local written_windows = {} -- key → when the window ends

-- Adds to one field of a window. Fields at zero are deleted: the concurrency window never expires
-- and would collect them.
local function add_to_window(key, field, amount, ends)
  if amount == 0 then
    return
  end
  if redis.call('HINCRBY', key, field, digits(amount)) == 0 then
    redis.call('HDEL', key, field)
  end
  written_windows[key] = ends
end

-- Sets the expiry of the windows that were written to. Called once, after the last addition, since
-- several counters share a key.
local function expire_windows()
  for key, ends in pairs(written_windows) do
    redis.call('PEXPIREAT', key, milliseconds(ends + WINDOW_GRACE))
  end
end

local function write_windows(consumptions)
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    if counter.period ~= 'minute' then
      add_to_window(counter.key, counter.unit .. ':reserved', consumption.amount, counter.ends)
    end
  end
  expire_windows()
end

local function bucket_state(counter, denied_amount)
  if not counter.maximum then
    return 0, 0, 0, 0
  end
  local missing = counter.capacity - counter.level
  local resets_in = missing > 0 and math.ceil(missing / counter.maximum) or 0
  local retry_in = 0 -- also for an amount that never fits
  if denied_amount and denied_amount <= counter.maximum then
    retry_in = math.ceil((denied_amount * UNIT - counter.level) / counter.maximum)
  end
  return math.ceil(missing / UNIT), 0, resets_in, retry_in
end

local function window_state(counter)
  return counter.spent, counter.reserved, counter.ends and counter.ends - now or 0, 0
end

-- Four numbers per consumption in one list: used, reserved, microseconds until the counter resets,
-- microseconds until a denied bucket holds the amount. `denied` is the number of the denied
-- consumption, if any.
local function states(consumptions, denied)
  local list = {}
  for number, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    local state = counter.period == 'minute' and bucket_state or window_state
    local i = 4 * number
    list[i - 3], list[i - 2], list[i - 1], list[i] =
      state(counter, number == denied and consumption.amount)
  end
  return list
end
