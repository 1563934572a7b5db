-- Counters: read into tables, changed in memory, and written only if every amount fits.
--
-- A bucket's level is stored in 1/60,000,000 of a unit: then it gains exactly `maximum` of these in
-- each microsecond, and nothing is ever rounded.

local UNIT = 60000000
local MINUTE = 60 * SECOND
local BUCKET_SECONDS = 120 -- an untouched bucket is full after a minute and need not be stored
local WINDOW_GRACE = 7 * 86400 * SECOND -- commands.WINDOW_GRACE_SECONDS

local function bucket_key(subject, unit)
  return BOOKS .. 'bucket:' .. subject .. ':' .. unit
end

local function window_key(subject, name)
  return BOOKS .. 'window:' .. subject .. ':' .. name
end

local function read_bucket(counter)
  if not counter.maximum then
    return -- a bucket without a limit is not stored
  end
  counter.key = bucket_key(counter.subject, counter.unit)
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

-- The windows of now by period. `choose_windows` adds those of the calendar.
local current_windows = { concurrency = { name = 'concurrency' } }

-- Reads the calendar that the gateway has sent: of two days in a row, when the first one begins and,
-- for each, the name and the end (in seconds) of its day, week and month. The server's clock chooses
-- between them. '' if the command needs no calendar. False if now is in neither day.
local function choose_windows(calendar)
  if calendar == '' then
    return true
  end
  local words = {}
  for word in string.gmatch(calendar, '%S+') do
    words[#words + 1] = word
  end
  local begins = tonumber(words[1]) * SECOND
  for first = 2, 8, 6 do
    local ends = tonumber(words[first + 1]) * SECOND
    if now >= begins and now < ends then
      for i = first, first + 4, 2 do
        current_windows[string.match(words[i], '^%a+')] =
          { name = words[i], ends = tonumber(words[i + 1]) * SECOND }
      end
      return true
    end
    begins = ends
  end
  return false
end

-- What a script returns, before it writes anything, if `choose_windows` fails: the gateway then
-- sends the command again, with the days of this time.
local function wrong_calendar()
  return error_reply('CALENDAR ' .. digits(now))
end

local opened_windows = {} -- by key

-- A window of a subject, read once per script.
local function open_window(subject, name, ends)
  local key = window_key(subject, name)
  local window = opened_windows[key]
  if not window then
    local stored = redis.call('HGETALL', key)
    window =
      { key = key, ends = ends, is_new = #stored == 0, fields = {}, changed = {}, counters = {} }
    for i = 1, #stored, 2 do
      window.fields[stored[i]] = tonumber(stored[i + 1])
    end
    opened_windows[key] = window
  end
  return window
end

local function read_window(counter)
  local current = current_windows[counter.period] -- nil for an unknown period
  counter.name, counter.ends = current.name, current.ends
  counter.window = open_window(counter.subject, current.name, current.ends)
  counter.pending = 0 -- of earlier consumptions of this command
end

local function amount_in(window, unit, kind)
  return window.fields[unit .. ':' .. kind] or 0
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

-- The consumptions from arguments[first] on: subject, unit, period, maximum ('' = none), amount, and
-- whether its limit is a shadow ('1'), of each. Consumptions of the same counter share its table.
local function read_consumptions(arguments, first)
  local consumptions, counters = {}, {}
  for i = first, #arguments, 6 do
    local subject, unit, period = arguments[i], arguments[i + 1], arguments[i + 2]
    local name = period .. ' ' .. unit .. ' ' .. subject
    counters[name] = counters[name]
      or read_counter(subject, unit, period, tonumber(arguments[i + 3]))
    table.insert(consumptions, {
      counter = counters[name], amount = tonumber(arguments[i + 4]),
      is_shadow = arguments[i + 5] == '1',
    })
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
  local window, unit = counter.window, counter.unit
  return amount_in(window, unit, 'spent') + amount_in(window, unit, 'reserved') + counter.pending
    + amount <= counter.maximum
end

-- Consumes from the buckets, and counts towards the windows if `reserves`; in the tables only.
-- Returns the number of the first consumption that does not fit, or nil and the indexes of those
-- whose shadow limit would have denied them. A shadow bucket gives nothing to these.
local function consume(consumptions, reserves)
  local exceeded = {}
  for number, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    local has_room = fits(counter, consumption.amount)
    if not has_room then
      if not consumption.is_shadow then
        return number
      end
      exceeded[#exceeded + 1] = number - 1
    end
    if counter.period == 'minute' then
      if counter.maximum and has_room and consumption.amount > 0 then
        counter.level = counter.level - consumption.amount * UNIT
        counter.has_given = true
      end
    elseif reserves then
      counter.pending = counter.pending + consumption.amount
    end
  end
  return nil, exceeded
end

-- Only of those that gave something: the level of another one may be cut to its present maximum.
local function write_buckets(consumptions)
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    if counter.has_given then
      redis.write('HSET', counter.key, 'level', digits(counter.level), 'at', digits(counter.at))
      redis.write('EXPIRE', counter.key, BUCKET_SECONDS)
    end
  end
end

-- For a denied request, which takes nothing: the bucket would stay in the future.
local function end_future_buckets(consumptions)
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    if counter.is_from_future then
      redis.write('HSET', counter.key, 'at', digits(now))
      redis.write('EXPIRE', counter.key, BUCKET_SECONDS)
    end
  end
end

-- Adds to an amount of a window; `write_windows` writes it. If the store has lost the window, less
-- may be left of it than a settlement releases: an amount is never below 0.
local function add_to_window(window, unit, kind, amount)
  if amount ~= 0 then
    local field = unit .. ':' .. kind
    window.fields[field] = math.max(0, (window.fields[field] or 0) + amount)
    window.changed[field] = true
  end
end

local function write_window(window)
  local written, zero = {}, {}
  for field in pairs(window.changed) do
    local amount = window.fields[field]
    -- The concurrency window never expires and would collect fields at zero.
    if amount == 0 and not window.ends then
      zero[#zero + 1] = field
    else
      written[#written + 1] = field
      written[#written + 1] = digits(amount)
    end
  end
  if #zero > 0 then
    redis.write('HDEL', window.key, unpack(zero))
  end
  if #written > 0 then
    redis.write('HSET', window.key, unpack(written))
    if window.ends and window.is_new then
      redis.write('PEXPIREAT', window.key, milliseconds(window.ends + WINDOW_GRACE))
    end
  end
end

local function write_windows()
  for _, window in pairs(opened_windows) do
    -- A window that has expired is not made again.
    if not window.ends or window.ends + WINDOW_GRACE > now then
      write_window(window)
    end
  end
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
  local window, unit = counter.window, counter.unit
  return amount_in(window, unit, 'spent'), amount_in(window, unit, 'reserved'),
    counter.ends and counter.ends - now or 0, 0
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
