-- Journals: one hash per purchase with state, worker, payload, at (its time), consumptions and
-- windows; once closed with charged, presumed and attempt instead of the payload. Numbers in JSON
-- are text, so none loses digits.

local FREE_SECONDS = 300 -- commands.FREE_JOURNAL_SECONDS

-- The consumptions of a reservation, each with the name and end of its window: a purchase is
-- charged to the windows of its reservation, whenever it is settled.
local function pack_consumptions(consumptions)
  local packed = {}
  for i, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    packed[i] = {
      counter.subject, counter.unit, counter.period,
      counter.maximum and digits(counter.maximum) or '', digits(consumption.amount),
      counter.name or '', counter.ends and digits(counter.ends) or '',
    }
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

-- What a reservation counts in which windows: a list of windows, and of each, as amounts by unit, what
-- its consumptions count there, as numbers or text. In the windows of every subject in `scopes` (subjects, amounts and
-- windows), all amounts count that no consumption has.
local function reserved_amounts(consumptions, scopes)
  local windows, amounts = {}, {}
  for _, item in ipairs(consumptions) do
    if item[3] ~= 'minute' then
      local window = open_window(item[1], item[6], tonumber(item[7]))
      local of_window, unit = amounts[window], item[2]
      if not of_window then
        of_window = {}
        windows[#windows + 1], amounts[window] = window, of_window
      end
      local amount, before = item[5], of_window[unit]
      of_window[unit] = before and before + amount or amount
    end
  end
  for _, subject in ipairs(scopes.subjects) do
    for _, packed in ipairs(scopes.windows) do
      local window = open_window(subject, packed[1], tonumber(packed[2]))
      local of_window = amounts[window]
      if not of_window then
        windows[#windows + 1], amounts[window] = window, scopes.amounts
      elseif of_window ~= scopes.amounts then -- else the same window is in `scopes` twice
        for unit, amount in pairs(scopes.amounts) do
          of_window[unit] = of_window[unit] or amount
        end
      end
    end
  end
  return windows, amounts
end

-- Adds what `reserved_amounts` returns to the reserved amounts.
local function add_reserved(windows, amounts)
  for _, window in ipairs(windows) do
    for unit, amount in pairs(amounts[window]) do
      add_to_window(window, unit, 'reserved', amount)
    end
  end
end

-- Has `write_windows` write what `changes_of(amounts, window)` returns for each window: field, amount,
-- …. It is called once for each table of amounts, because most windows share one.
local function change_windows(windows, amounts, changes_of)
  local known = {}
  for _, window in ipairs(windows) do
    local of_window = amounts[window]
    local changes = known[of_window]
    if not changes then
      changes = changes_of(of_window, window)
      known[of_window] = changes
    end
    window.added = changes
  end
end

local function negated(amount)
  if type(amount) == 'number' then
    return -amount
  end
  return amount == '0' and amount or '-' .. amount
end

local function subtract_reserved(windows, amounts)
  for _, window in ipairs(windows) do
    for unit, amount in pairs(amounts[window]) do
      add_to_window(window, unit, 'reserved', negated(amount))
    end
  end
end

-- Adds the keys that `reserved_amounts` and `reread_consumptions` read.
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

-- Packed consumptions with their counters as they are now, for `states`. Nothing is denied here.
local function reread_consumptions(packed)
  local consumptions = {}
  for i, item in ipairs(packed) do
    consumptions[i] =
      { counter = read_counter(item[1], item[2], item[3], tonumber(item[4])), amount = item[5] }
  end
  return consumptions
end

-- A charge as a table unit → amount, from JSON of a list unit, amount, ….
local function unpack_charge(packed)
  local charge, list = {}, cjson.decode(packed)
  for i = 1, #list, 2 do
    charge[list[i]] = tonumber(list[i + 1])
  end
  return charge
end
