-- Journals: one hash per purchase with state, worker, payload, at (its time), consumptions and
-- windows; once closed with charged, presumed and attempt instead of the payload. Numbers in JSON
-- are text, so none loses digits.

local CLOSED_SECONDS = 7 * 86400 -- commands.CLOSED_JOURNAL_SECONDS
local FREE_SECONDS = 300 -- commands.FREE_JOURNAL_SECONDS
local NO_WINDOWS = '{"subjects":[],"amounts":{},"windows":[]}'

-- The consumptions of a reservation, each with the name and end of its window: a purchase is
-- charged to the windows of its reservation, whenever it is settled.
local function pack_consumptions(consumptions)
  local packed = {}
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    table.insert(packed, {
      counter.subject, counter.unit, counter.period,
      counter.maximum and digits(counter.maximum) or '', digits(consumption.amount),
      counter.name or '', counter.ends and digits(counter.ends) or '',
    })
  end
  return packed
end

-- Writes what an open purchase has reserved, which its journal has too. `at` is text.
local function write_reserved(worker, purchase, at, consumptions, windows)
  redis.write('HSET', reserved_key(worker), purchase,
    table.concat({ at, consumptions, windows }, '\n')) -- JSON has no line break
end

-- The calendar windows of now, as the field `windows` of a journal has them: name and end of each.
local function pack_current_windows()
  local packed = {}
  for period, window in pairs(current_windows) do
    if period ~= 'concurrency' then
      table.insert(packed, { window.name, digits(window.ends) })
    end
  end
  return packed
end

-- The counters of windows that a reservation counts in, each once, as {window, unit, amount,
-- is_charged}: those of its consumptions, and of every subject in `scopes` (subjects, amounts and
-- windows) all others. The concurrency window is not charged; it only counts reserved amounts.
local function reserved_counters(consumptions, scopes)
  local counters = {}
  local function add(window, unit, amount)
    local counter =
      { window = window, unit = unit, amount = amount, is_charged = window.ends ~= nil }
    counters[#counters + 1] = counter
    window.counters[unit] = counter
  end
  for _, item in ipairs(consumptions) do
    local unit, amount = item[2], tonumber(item[5])
    if item[3] ~= 'minute' then
      local window = open_window(item[1], item[6], tonumber(item[7]))
      local counter = window.counters[unit]
      if counter then
        counter.amount = counter.amount + amount
      else
        add(window, unit, amount)
      end
    end
  end
  for _, subject in ipairs(scopes.subjects) do
    for _, packed in ipairs(scopes.windows) do
      local window = open_window(subject, packed[1], tonumber(packed[2]))
      for unit, amount in pairs(scopes.amounts) do
        if not window.counters[unit] then
          add(window, unit, tonumber(amount))
        end
      end
    end
  end
  return counters
end

-- Adds the keys that `reserved_counters` and `reread_consumptions` read.
local function add_reserved_keys(names, consumptions, scopes)
  for _, item in ipairs(consumptions) do
    local subject, unit, period = item[1], item[2], item[3]
    if period == 'minute' then
      names[#names + 1] = bucket_key(subject, unit)
    else
      names[#names + 1] = window_key(subject, item[6])
      names[#names + 1] = current_windows[period] and window_key(subject, current_windows[period].name)
    end
  end
  for _, subject in ipairs(scopes.subjects) do
    for _, packed in ipairs(scopes.windows) do
      names[#names + 1] = window_key(subject, packed[1])
    end
  end
end

-- Packed consumptions with their counters as they are now, for `states`.
local function reread_consumptions(packed)
  local arguments = {}
  for _, item in ipairs(packed) do
    for i = 1, 5 do
      arguments[#arguments + 1] = item[i]
    end
    arguments[#arguments + 1] = '' -- nothing is denied here
  end
  return read_consumptions(arguments, 1)
end

-- A charge as a table unit → amount, from a list unit, amount, ….
local function read_charge(arguments, first)
  local charge = {}
  for i = first, #arguments, 2 do
    charge[arguments[i]] = tonumber(arguments[i + 1])
  end
  return charge
end

local function pack_charge(charge)
  local packed = {}
  for unit, amount in pairs(charge) do
    table.insert(packed, unit)
    table.insert(packed, digits(amount))
  end
  return cjson.encode(packed)
end

local function unpack_charge(packed)
  return read_charge(cjson.decode(packed), 1)
end
