-- Meters: read into tables, changed in memory, written only when everything fits.
--
-- A bucket's level is kept in 1/60,000,000 of a whole, because then it gains exactly `maximum`
-- units in each microsecond and nothing is ever rounded.

local WHOLE = 60000000
local MINUTE = 60 * SECOND
local BUCKET_SECONDS = 120 -- untouched for a minute every bucket is full: it may go
local WINDOW_GRACE = 7 * DAY -- verbs.WINDOW_GRACE_SECONDS

local function read_bucket(meter)
  if not meter.maximum then
    return -- without a limit it is not kept
  end
  meter.key = BOOKS .. 'bucket:' .. meter.scope .. ':' .. meter.unit
  meter.capacity = meter.maximum * WHOLE
  meter.level, meter.at = meter.capacity, now
  local kept = redis.call('HMGET', meter.key, 'level', 'at')
  if not kept[1] then
    return
  end
  meter.at = math.max(now, tonumber(kept[2])) -- a clock that stepped back refills nothing
  local elapsed = meter.at - tonumber(kept[2])
  if elapsed < MINUTE then
    meter.level = math.min(meter.capacity, tonumber(kept[1]) + elapsed * meter.maximum)
  end
end

local windows_now = { concurrency = { name = 'concurrency' } } -- by period; the calendar is asked once

local function window_of(period)
  if not windows_now[period] then
    local name, ends = (period == 'day' and day_of or month_of)(now)
    windows_now[period] = { name = period .. ':' .. name, ends = ends }
  end
  return windows_now[period]
end

local function read_window(meter)
  local window = window_of(meter.period)
  meter.window, meter.ends = window.name, window.ends
  meter.key = BOOKS .. 'window:' .. meter.scope .. ':' .. meter.window
  local kept = redis.call('HMGET', meter.key, meter.unit .. ':spent', meter.unit .. ':reserved')
  meter.spent = tonumber(kept[1] or 0)
  meter.reserved = tonumber(kept[2] or 0)
end

local function read_meter(scope, unit, period, maximum)
  local meter = { scope = scope, unit = unit, period = period, maximum = maximum }
  if period == 'minute' then
    read_bucket(meter)
  else
    read_window(meter)
  end
  return meter
end

-- Takes from ARGV[first] on: scope, unit, period, maximum ('' = none) and amount of each.
-- Takes from the same meter share its table.
local function read_takes(arguments, first)
  local takes, known = {}, {}
  for i = first, #arguments, 5 do
    local scope, unit, period = arguments[i], arguments[i + 1], arguments[i + 2]
    local name = period .. ' ' .. unit .. ' ' .. scope
    known[name] = known[name] or read_meter(scope, unit, period, tonumber(arguments[i + 3]))
    table.insert(takes, { meter = known[name], amount = tonumber(arguments[i + 4]) })
  end
  return takes
end

local function fits(meter, amount)
  if amount == 0 or not meter.maximum then
    return true
  end
  if meter.period == 'minute' then
    return amount * WHOLE <= meter.level
  end
  return meter.spent + meter.reserved + amount <= meter.maximum
end

-- Takes from the buckets, in the tables only, and reserves in the windows if it `reserves`.
-- Answers the number of the first take that does not fit.
local function draw(takes, reserves)
  for number, take in ipairs(takes) do
    local meter = take.meter
    if not fits(meter, take.amount) then
      return number
    end
    if meter.period == 'minute' then
      meter.level = meter.maximum and meter.level - take.amount * WHOLE
    elseif reserves then
      meter.reserved = meter.reserved + take.amount
    end
  end
end

local function write_buckets(takes)
  for _, take in ipairs(takes) do
    local meter = take.meter
    if meter.period == 'minute' and meter.maximum and take.amount > 0 then
      redis.call('HSET', meter.key, 'level', digits(meter.level), 'at', digits(meter.at))
      redis.call('EXPIRE', meter.key, BUCKET_SECONDS)
    end
  end
end

local moved = {} -- keys of windows that were written to → when their window ends

-- Moves one counter of a window. A counter that shows nothing is not kept: the open window has
-- no end and would otherwise gather them.
local function move(key, field, amount, ends)
  if amount == 0 then
    return
  end
  if redis.call('HINCRBY', key, field, digits(amount)) == 0 then
    redis.call('HDEL', key, field)
  end
  moved[key] = ends
end

-- Comes after the last move: a window's counters share one key, which needs its end only once.
local function limit_lives()
  for key, ends in pairs(moved) do
    redis.call('PEXPIREAT', key, milliseconds(ends + WINDOW_GRACE))
  end
end

local function write_windows(takes)
  for _, take in ipairs(takes) do
    local meter = take.meter
    if meter.period ~= 'minute' then
      move(meter.key, meter.unit .. ':reserved', take.amount, meter.ends)
    end
  end
  limit_lives()
end

-- used, reserved, microseconds until it resets, microseconds until a refused bucket can give.
local function bucket_state(meter, refused_amount)
  if not meter.maximum then
    return 0, 0, 0, 0
  end
  local missing = meter.capacity - meter.level
  local resets = missing > 0 and math.ceil(missing / meter.maximum) or 0
  local retry = 0 -- also for what will never fit
  if refused_amount and refused_amount <= meter.maximum then
    retry = math.ceil((refused_amount * WHOLE - meter.level) / meter.maximum)
  end
  return math.ceil(missing / WHOLE), 0, resets, retry
end

local function window_state(meter)
  return meter.spent, meter.reserved, meter.ends and meter.ends - now or 0, 0
end

-- Four numbers for each take, all in one list. `refused` is the number of the take that was.
local function states(takes, refused)
  local shown = {}
  for number, take in ipairs(takes) do
    local state = take.meter.period == 'minute' and bucket_state or window_state
    local i = 4 * number
    shown[i - 3], shown[i - 2], shown[i - 1], shown[i] =
      state(take.meter, number == refused and take.amount)
  end
  return shown
end
