-- Counters: read into tables, changed in memory, and written only if every amount fits.

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
  counter.at = now
  local stored = redis.call('HMGET', counter.key, 'level', 'at')
  counter.level = refilled(stored, counter.maximum)
  counter.is_from_future = stored[1] and tonumber(stored[2]) > now
  counter.filled_at = stored[2]
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
  local begins, first, first_ends, second, second_ends =
    string.match(calendar, '^(%S+) (%S+ (%S+) %S+ %S+ %S+ %S+) (%S+ (%S+) .*)$')
  local seconds, chosen = now / SECOND, nil
  if seconds >= tonumber(begins) and seconds < tonumber(first_ends) then
    chosen = first
  elseif seconds >= tonumber(first_ends) and seconds < tonumber(second_ends) then
    chosen = second
  else
    return false
  end
  for name, period, ends in string.gmatch(chosen, '((%a+):%S+) (%S+)') do
    current_windows[period] = { name = name, ends = ends * SECOND }
  end
  return true
end

-- What a script returns, before it writes anything, if `choose_windows` fails: the gateway then
-- sends the command again, with the days of this time.
local function wrong_calendar()
  return error_reply('CALENDAR ' .. digits(now))
end

local NO_CHANGES = {}
local opened_windows = {} -- in the order of `open_window`
local windows_by_subject = {} -- by subject, then by name

-- A window of a subject, one table per script. Its amounts are read when they are needed, and most
-- windows have no limit, so a reservation only adds to them.
local function open_window(subject, name, ends)
  local by_name = windows_by_subject[subject]
  if not by_name then
    by_name = {}
    windows_by_subject[subject] = by_name
  end
  local window = by_name[name]
  if not window then
    local key = window_key(subject, name)
    if not declared[key] then -- else the script could ask for it after it has written
      ask_for({ key })
    end
    -- `fields` are the amounts as the script has changed them, and `added` are the changes: field,
    -- amount, …, which `write_windows` writes. Windows may share them, see `change_windows`.
    window = { key = key, ends = ends, fields = nil, written = nil, added = NO_CHANGES }
    by_name[name] = window
    opened_windows[#opened_windows + 1] = window
  end
  return window
end

-- Adds to an amount that is a number or text. If the store has lost the window, less may be left of it
-- than a settlement releases: an amount is never below 0.
local function add_to_field(fields, field, amount)
  fields[field] = math.max(0, (fields[field] or 0) + amount)
end

local function read_fields(window)
  local stored, fields, added = redis.call('HGETALL', window.key), {}, window.added
  for i = 1, #stored, 2 do
    fields[stored[i]] = stored[i + 1] -- text: a script computes with few of them
  end
  for i = 1, #added, 2 do
    add_to_field(fields, added[i], added[i + 1])
  end
  window.fields = fields
  return fields
end

local function read_window(counter)
  local current = current_windows[counter.period] -- nil for an unknown period
  counter.name, counter.ends = current.name, current.ends
  counter.window = open_window(counter.subject, current.name, current.ends)
  counter.pending = 0 -- of earlier consumptions of this command
end

local function amount_in(window, unit, kind)
  local fields, field = window.fields, unit .. ':' .. kind
  local amount = (fields or window.written or read_fields(window))[field]
  if not amount and not fields then
    amount = read_fields(window)[field]
  end
  return tonumber(amount or 0)
end

local function read_counter(subject, unit, period, maximum)
  -- With room for what `read_bucket` or `read_window` adds.
  local counter = {
    subject = subject, unit = unit, period = period, maximum = maximum,
    key = nil, level = nil, at = nil, window = nil,
  }
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
    consumptions[#consumptions + 1] = {
      counter = counters[name], amount = tonumber(arguments[i + 4]),
      is_shadow = arguments[i + 5] == '1',
    }
  end
  return consumptions
end

-- Consumptions that were sent as JSON, as `read_consumptions` reads them.
local function unpack_consumptions(packed, shadows)
  local arguments, n = {}, 0
  for i, item in ipairs(cjson.decode(packed)) do
    for part = 1, 5 do
      arguments[n + part] = item[part]
    end
    arguments[n + 6] = shadows:sub(i, i)
    n = n + 6
  end
  return arguments
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
      redis.write('HSET', counter.key, 'level', counter.level, 'at', counter.at)
      if begins_to_expire(counter.filled_at) then
        redis.write('EXPIRE', counter.key, BUCKET_SECONDS)
      end
    end
  end
end

-- For a denied request, which takes nothing: the bucket would stay in the future.
local function end_future_buckets(consumptions)
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    if counter.is_from_future then
      redis.write('HSET', counter.key, 'at', now)
      redis.write('EXPIRE', counter.key, BUCKET_SECONDS)
    end
  end
end

-- Adds to an amount of a window; `write_windows` writes it. The amount is a number, or text of digits.
local function add_to_window(window, unit, kind, amount)
  if amount ~= 0 and amount ~= '0' then
    local fields, field = window.fields, unit .. ':' .. kind
    if window.added == NO_CHANGES then
      window.added = {}
    end
    local added = window.added
    added[#added + 1] = field
    added[#added + 1] = amount
    if fields then
      add_to_field(fields, field, amount)
    end
  end
end

local expiries = {} -- the ends of windows as `PEXPIREAT` takes them, because writing numbers is slow

-- One command per amount takes less time than to read the window, compute, and write text.
local function write_window(window)
  local key, ends, added, written = window.key, window.ends, window.added, {}
  local may_be_new = false -- in a window that was there, the first amount is larger than its change
  for i = 1, #added, 2 do
    local field = added[i]
    local total = redis.write('HINCRBY', key, field, added[i + 1])
    may_be_new = may_be_new or i == 1 and total <= tonumber(added[2])
    if total < 0 then
      redis.write('HSET', key, field, 0)
      total = 0
    end
    written[field] = total
  end
  window.added, window.written = NO_CHANGES, written
  if window.fields then
    for field, total in pairs(written) do
      window.fields[field] = total
    end
  end
  if ends then
    if may_be_new then
      expiries[ends] = expiries[ends] or milliseconds(ends + WINDOW_GRACE)
      redis.write('PEXPIREAT', key, expiries[ends], 'NX')
    end
    return
  end
  -- The concurrency window never expires and would collect fields at zero.
  for field, total in pairs(written) do
    if total == 0 then
      redis.write('HDEL', key, field)
    end
  end
end

local function write_windows()
  for _, window in ipairs(opened_windows) do
    -- A window that has expired is not made again.
    if window.added[1] and (not window.ends or window.ends + WINDOW_GRACE > now) then
      write_window(window)
    end
  end
end

local function bucket_state(counter, denied_amount)
  if not counter.maximum then
    return 0, 0, 0, 0
  end
  local used, resets_in = level_state(counter.level, counter.maximum)
  local retry_in = 0 -- also for an amount that never fits
  if denied_amount and denied_amount <= counter.maximum then
    retry_in = math.ceil((denied_amount * UNIT - counter.level) / counter.maximum)
  end
  return used, 0, resets_in, retry_in
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
  local list, i = {}, 0
  for number, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    local state = counter.period == 'minute' and bucket_state or window_state
    local used, reserved, resets_in, retry_in =
      state(counter, number == denied and consumption.amount)
    -- In order. An assignment of all four begins with the last one, and Lua then uses a hash.
    list[i + 1] = used
    list[i + 2] = reserved
    list[i + 3] = resets_in
    list[i + 4] = retry_in
    i = i + 4
  end
  return list
end
